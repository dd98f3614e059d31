"""Layers whose convolution path was merged to one convolution."""

from functools import partial

import pytest
import torch
from torch import nn

from acmix_mm.backbones import ACmixResNet
from acmix_mm.layers import (
    ACmix,
    PatchwiseACmix,
    SpatialReductionACmix,
    WindowACmix,
    merge_convolutions,
)

LAYERS = [
    pytest.param(partial(ACmix, 8, 8, stride=2), (1, 8, 9, 10), id='ACmix'),
    pytest.param(
        partial(ACmix, 8, 16, dilation=2, kernel_conv=5, num_conv_pairs=2, path_weights=(0, 3)),
        (1, 8, 9, 10),
        id='convolution-only',
    ),
    pytest.param(partial(PatchwiseACmix, 8, 2, 8), (1, 8, 9, 10), id='PatchwiseACmix'),
    pytest.param(
        partial(SpatialReductionACmix, 8, 2, sr_ratio=2, path_weights='complementary'),
        (1, 9, 10, 8),
        id='SpatialReductionACmix',
    ),
    pytest.param(partial(WindowACmix, 8, 2, shift_size=3), (1, 9, 10, 8), id='WindowACmix'),
    pytest.param(
        partial(WindowACmix, 8, 2, shift_size=3, roll_conv=False, qkv_bias=False),
        (1, 9, 10, 8),
        id='WindowACmix-unrolled',
    ),
]


def random_layer(make) -> nn.Module:
    torch.manual_seed(0)
    layer = make().double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return layer


@pytest.mark.parametrize(('make', 'shape'), LAYERS)
def test_output_is_the_same(make, shape):
    layer, x = random_layer(make), torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        expected = layer(x)
        assert merge_convolutions(layer) is layer
        torch.testing.assert_close(layer(x), expected, rtol=1e-11, atol=1e-11)
    assert not any(name.startswith('shift_conv') for name, _ in layer.named_parameters())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
def test_precision_of_autocast(dtype):
    layer, x = random_layer(partial(ACmix, 8, 8)).float(), torch.randn(1, 8, 9, 10)
    merge_convolutions(layer)
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype != torch.float32):
        assert layer(x).dtype == dtype


def test_network_is_merged_and_saved(tmp_path):
    network, x = ACmixResNet(26).eval(), torch.randn(1, 3, 64, 64)
    expected = network(x)
    merge_convolutions(network)
    for ours, theirs in zip(network(x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    other = merge_convolutions(ACmixResNet(26))
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.eval()(x)[3], network(x)[3])


def test_refuses_what_it_cannot_merge():
    with pytest.raises(ValueError, match='no ACmix layer with a convolution path'):
        merge_convolutions(ACmix(8, 8, path_weights=(1, 0)))
    with pytest.raises(ValueError, match='no ACmix layer with a convolution path'):
        merge_convolutions(merge_convolutions(ACmix(8, 8)))
    layers = nn.Sequential(ACmix(8, 8), WindowACmix(8, 2))
    layers[1].qkv = nn.Sequential(layers[1].qkv)
    with pytest.raises(ValueError, match=r"path of '1' cannot be merged: .* got Sequential"):
        merge_convolutions(layers)
    assert 'shift_conv.kernel' in layers[0].state_dict(), 'nothing was changed'
