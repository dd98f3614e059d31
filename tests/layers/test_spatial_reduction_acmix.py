import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from acmix_mm.layers import SpatialReductionACmix


def randomized(*args, **kwargs) -> SpatialReductionACmix:
    """A float64 layer away from its start, whose one-hot shifts and equal weights hide errors."""
    torch.manual_seed(0)
    layer = SpatialReductionACmix(*args, **kwargs).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return layer


def attention(layer: SpatialReductionACmix, x: Tensor) -> Tensor:
    """PVT's spatial-reduction attention, step by step."""
    channels = x.shape[-1]
    q, kv = F.linear(x, layer.qkv.weight[:channels], layer.qkv.bias[:channels]), x
    if layer.sr_ratio > 1:
        kv = layer.norm(layer.sr(x.movedim(-1, 1)).movedim(1, -1))
    k, v = F.linear(kv, layer.qkv.weight[channels:], layer.qkv.bias[channels:]).chunk(2, -1)
    heads = []
    split = (t.flatten(1, 2).chunk(layer.num_heads, -1) for t in (q, k, v))
    for q, k, v in zip(*split, strict=True):
        logits = q @ k.mT / q.shape[-1] ** 0.5
        heads.append(logits.softmax(-1) @ v)
    return layer.proj(torch.cat(heads, -1)).view_as(x)


def convolution(layer: SpatialReductionACmix, x: Tensor) -> Tensor:
    """The convolution path as released for transformers: two layers, channels head_dim major."""
    head_dim = x.shape[-1] // layer.num_heads
    maps = layer.qkv(x).movedim(-1, 1).unflatten(1, (3 * layer.num_heads, head_dim))
    out = x.new_zeros(())
    conv = layer.shift_conv
    kernels = conv.kernel.chunk(len(conv.fc_weight))
    for weight, bias, kernel in zip(conv.fc_weight, conv.fc_bias, kernels, strict=True):
        mixed = torch.einsum('im,bmdhw->bdihw', weight, maps) + bias[:, None, None]
        out = out + F.conv2d(mixed.flatten(1, 2), kernel, padding=1, groups=head_dim)
    return out.movedim(1, -1)


@pytest.mark.parametrize('num_conv_pairs', [1, 2])
@pytest.mark.parametrize('sr_ratio', [1, 2, 4])
@pytest.mark.parametrize('size', [(4, 8), (7, 9)])
def test_equals_formula(size, sr_ratio, num_conv_pairs):
    layer = randomized(12, 3, sr_ratio, num_conv_pairs=num_conv_pairs)
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    expected = layer.mix.alpha * attention(layer, x)
    expected = expected + layer.mix.beta * convolution(layer, x)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize('sr_ratio', [1, 2])
@pytest.mark.parametrize(('path_weights', 'path'), [((1, 0), attention), ((0, 1), convolution)])
def test_single_path(path_weights, path, sr_ratio):
    layer = randomized(12, 3, sr_ratio, path_weights=path_weights)
    x = torch.randn(2, 4, 5, 12, dtype=torch.float64)
    out = layer(x)
    torch.testing.assert_close(out, path(layer, x))
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize('sr_ratio', [1, 2])
def test_gradients(sr_ratio):
    layer = randomized(4, 2, sr_ratio)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    parameters = tuple(layer.parameters())

    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *parameters), fast_mode=True)


def test_dropout_is_for_training_alone():
    layer = randomized(12, 3, attn_drop_rate=0.5, path_weights=(1, 0))
    x = torch.randn(2, 4, 5, 12, dtype=torch.float64)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    torch.testing.assert_close(layer(x), attention(layer, x))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(num_heads=5), 'embed_dims must be a multiple of num_heads=5, got 12'),
        (dict(sr_ratio=0), 'sr_ratio must be a positive integer, got 0'),
        (dict(kernel_conv=2), 'must be a positive odd integer, got 2'),
        (dict(path_weights='both'), "got 'both'"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SpatialReductionACmix(**dict(embed_dims=12, num_heads=3) | kwargs)


def test_map_smaller_than_the_reduction():
    with pytest.raises(ValueError, match='3x9 tokens is too small to be reduced by sr_ratio=4'):
        randomized(12, 3, sr_ratio=4)(torch.zeros(1, 3, 9, 12, dtype=torch.float64))
