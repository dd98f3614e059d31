import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix_mm.backbones import ACmixSAN
from acmix_mm.checkpoints import identify
from acmix_mm.ops.padding import reflect_pad2d

BLOCKS, KERNELS = (1, 1, 2, 1, 1), (3, 7, 7, 7, 7)


class _Small(ACmixSAN):
    blocks_of_depth = {10: BLOCKS}


class PlainAttention(nn.Module):
    """Patch-wise self-attention of Zhao et al., CVPR 2020, written from the formula."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        rel, out, positions = channels // 16, channels // 4, kernel_size**2
        self.conv1 = nn.Conv2d(channels, rel, 1)
        self.conv2 = nn.Conv2d(channels, rel, 1)
        self.conv3 = nn.Conv2d(channels, out, 1)
        self.conv_w = nn.Sequential(
            nn.BatchNorm2d(rel * (positions + 1)),
            nn.ReLU(),
            nn.Conv2d(rel * (positions + 1), out // 8, 1, bias=False),
            nn.BatchNorm2d(out // 8),
            nn.ReLU(),
            nn.Conv2d(out // 8, positions * (out // 8), 1),
        )

    def windows(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, K * K, H, W)."""
        size = self.kernel_size
        padded = reflect_pad2d(x, size // 2).unfold(2, size, 1).unfold(3, size, 1)
        return padded.permute(0, 1, 4, 5, 2, 3).flatten(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.conv1(x), self.windows(self.conv2(x)), self.windows(self.conv3(x))
        weights = self.conv_w(torch.cat([q, k.flatten(1, 2)], 1))
        weights = weights.unflatten(1, (-1, self.kernel_size**2))
        groups = weights.shape[1]
        channels = [(weights[:, c % groups] * v[:, c]).sum(1) for c in range(v.shape[1])]
        return torch.stack(channels, 1)


class PlainBlock(nn.Module):
    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.sam = PlainAttention(channels, kernel_size)
        self.bn2 = nn.BatchNorm2d(channels // 4)
        self.conv = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.relu(self.bn2(self.sam(F.relu(self.bn1(x))))))


class PlainSAN(nn.Module):
    """Patch-wise SAN with the parameter names of the authors' checkpoints."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.conv_in, self.bn_in = nn.Conv2d(3, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.fc = nn.Linear(32 * channels, 10)
        before = channels
        for i, (blocks, kernel_size) in enumerate(zip(BLOCKS, KERNELS, strict=True)):
            now = channels * 2 ** (i + 1) if i else channels
            self.add_module(f'conv{i}', nn.Conv2d(before, now, 1, bias=False))
            layer = [PlainBlock(now, kernel_size) for _ in range(blocks)]
            self.add_module(f'layer{i}', nn.Sequential(*layer))
            self.add_module(f'bn{i}', nn.BatchNorm2d(now))
            before = now

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.bn_in(self.conv_in(x)))
        outs = []
        for i in range(5):
            conv, layer, norm = (self.get_submodule(f'{n}{i}') for n in ('conv', 'layer', 'bn'))
            x = F.relu(norm(layer(conv(F.max_pool2d(x, 2)))))
            outs.append(x)
        return outs


@pytest.fixture(scope='module')
def plain() -> PlainSAN:
    torch.manual_seed(0)
    network = PlainSAN()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith('running_var'):
                tensor.uniform_(0.5, 1.5)
            elif tensor.dim() == 1:
                tensor.add_(torch.randn_like(tensor) * 0.1)
    return network.double().eval()


def loaded(state_dict: dict[str, Tensor], **kwargs) -> ACmixSAN:
    kwargs = dict(base_channels=32, out_indices=range(5), norm_eval=False) | kwargs
    backbone = _Small(10, **kwargs).double().eval()
    assert not any(backbone.load_state_dict(state_dict))
    return backbone


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('size', [(64, 64), (125, 167)])
def test_plain_checkpoint_gives_the_plain_output(plain, size, training):
    ours, theirs = (network.train(training) for network in (loaded(plain.state_dict()), plain))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        for mine, expected in zip(ours(x), theirs(x), strict=True):
            assert (mine - expected).abs().max() <= 1e-6 * expected.abs().max()
    plain.eval()


def test_data_parallel_checkpoint(plain):
    """The authors' training script writes checkpoints in this form."""
    entries = {f'module.{name}': tensor for name, tensor in plain.state_dict().items()}
    ours = loaded({'state_dict': entries, 'epoch': torch.tensor(100)})
    weight = torch.cat([plain.layer2[1].sam.get_submodule(f'conv{i}').weight for i in (1, 2, 3)])
    torch.testing.assert_close(ours.stages[2].blocks[1].attn.qkv.weight, weight)


def test_beta_learns_after_a_warm_start(plain):
    backbone = loaded(plain.state_dict())
    sum(out.square().mean() for out in backbone(torch.randn(1, 3, 64, 64).double())).backward()
    for stage in backbone.stages:
        for block in stage.blocks:
            assert block.attn.mix.alpha.item() == 1
            assert block.attn.mix.beta.item() == 0
            assert block.attn.mix.beta.grad.abs().item() > 0


def test_without_warm_start_paths_keep_their_start(plain):
    backbone = _Small(10, base_channels=32, warm_start=False)
    missing, unexpected = backbone.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert {name.split('.attn.')[1].split('.')[0] for name in missing} == {'mix', 'shift_conv'}


def test_pair_wise_checkpoint_is_refused(plain):
    entries = plain.state_dict() | {'layer0.0.sam.conv_p.weight': torch.zeros(2, 2, 1, 1)}
    with pytest.raises(ValueError, match='pair-wise SAN, but ACmixSAN is patch-wise'):
        _Small(10, base_channels=32).load_state_dict(entries)


def test_own_checkpoint_is_ours():
    backbone = _Small(10, base_channels=32)
    assert identify(backbone.state_dict())[1].name == 'ACmixSAN of acmix-mm'
