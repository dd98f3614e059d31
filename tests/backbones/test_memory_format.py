import pytest
import torch

from acmix_mm.backbones import ACmixPVT, ACmixResNet, ACmixSAN, ACmixSwin

BACKBONES = {
    ACmixResNet: dict(depth=26, base_channels=8),
    ACmixPVT: dict(embed_dims=4, num_layers=(1, 1, 1, 1)),
    ACmixSAN: dict(depth=10, base_channels=32),
    ACmixSwin: dict(embed_dims=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 4)),
}


@pytest.mark.parametrize('backbone', BACKBONES, ids=lambda backbone: backbone.__name__)
def test_results_do_not_depend_on_the_memory_format(backbone):
    torch.manual_seed(0)
    network = backbone(**BACKBONES[backbone]).double().eval()
    image = torch.randn(2, 3, 48, 64, dtype=torch.float64)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        network.to(memory_format=memory_format)
        leaf = image.to(memory_format=memory_format).requires_grad_()
        outs = network(leaf)
        results.append([*outs, *torch.autograd.grad(sum(out.square().sum() for out in outs), leaf)])
    torch.testing.assert_close(*results)
