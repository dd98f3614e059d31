import torch
from torch import nn

from acmix_mm.layers.recompute import recompute


def test_recompute_equals_plain_training():
    """BatchNorm counts one step, and gradients and statistics are those without recomputation."""
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    results = []
    for again in (False, True):
        torch.manual_seed(0)
        block = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
        torch.manual_seed(1)
        out = recompute(block, block, x) if again else block(x)
        out.square().sum().backward()
        gradients = [p.grad for p in block.parameters()]
        results.append([out, *gradients, *block.state_dict().values()])
        assert block[1].track_running_stats
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain)
