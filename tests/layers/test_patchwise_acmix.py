import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from acmix_mm.layers import PatchwiseACmix
from acmix_mm.ops.padding import reflect_pad2d


def randomized(*args, **kwargs) -> PatchwiseACmix:
    """A float64 layer away from its start, whose one-hot shifts and equal weights hide errors."""
    torch.manual_seed(0)
    layer = PatchwiseACmix(*args, **kwargs).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return layer


def attention(layer: PatchwiseACmix, x: Tensor) -> Tensor:
    """Patch-wise attention from the formula, with im2col of queries, keys and values."""
    size, rel = layer.kernel_att, layer.rel_channels
    q, k, v = layer.qkv(x).tensor_split((rel, 2 * rel), 1)

    def windows(x: Tensor) -> Tensor:
        return F.unfold(reflect_pad2d(x, size // 2), size).unflatten(1, (-1, size**2))

    seen = torch.cat([q.flatten(2), windows(k).flatten(1, 2)], 1).unsqueeze(-1)
    weights = layer.mlp(seen).squeeze(-1).unflatten(1, (-1, size**2))
    shared = weights.repeat(1, v.shape[1] // weights.shape[1], 1, 1)
    return (shared * windows(v)).sum(2).view_as(v)


def convolution(layer: PatchwiseACmix, x: Tensor) -> Tensor:
    """The convolution path as released for convolutional networks, on maps of R channels."""
    rel = layer.rel_channels
    maps = layer.qkv(x).unflatten(1, (-1, rel))
    out = x.new_zeros(())
    kernels = layer.shift_conv.kernel.chunk(len(layer.shift_conv.fc_weight))
    for weight, kernel in zip(layer.shift_conv.fc_weight, kernels, strict=True):
        mixed = torch.einsum('im,bmghw->bgihw', weight, maps).flatten(1, 2)
        out = out + F.conv2d(mixed, kernel, padding=1, groups=rel)
    return out


SIZES = dict(in_channels=6, rel_channels=2, out_channels=8, share_channels=4)


@pytest.mark.parametrize('num_conv_pairs', [1, 2])
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('kernel_att', [3, 7])
@pytest.mark.parametrize('size', [(8, 9), (5, 2)])
def test_equals_formula(size, kernel_att, training, num_conv_pairs):
    layer = randomized(**SIZES, kernel_att=kernel_att, num_conv_pairs=num_conv_pairs)
    layer.train(training)
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    expected = layer.mix.alpha * attention(layer, x) + layer.mix.beta * convolution(layer, x)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(('path_weights', 'path'), [((1, 0), attention), ((0, 1), convolution)])
def test_single_path(path_weights, path):
    layer = randomized(**SIZES, path_weights=path_weights)
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    out = layer(x)
    torch.testing.assert_close(out, path(layer, x))
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_gradients():
    layer = randomized(3, 1, 2, kernel_att=3, share_channels=2)
    x = torch.randn(1, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    parameters = tuple(layer.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *parameters), fast_mode=True)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(out_channels=12), 'multiple of rel_channels=2 and of share_channels=8, got 12'),
        (dict(rel_channels=3), 'multiple of rel_channels=3 and of share_channels=8, got 16'),
        (dict(kernel_att=4), 'kernel_att must be a positive odd integer, got 4'),
        (dict(kernel_conv=2), 'must be a positive odd integer, got 2'),
        (dict(in_channels=0), 'in_channels must be a positive integer, got 0'),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PatchwiseACmix(**dict(in_channels=8, rel_channels=2, out_channels=16) | kwargs)
