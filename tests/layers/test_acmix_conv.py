"""``dict(type='ACmix')``, in place of a convolution."""

import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer
from torch import nn

from acmix_mm.layers import ACmix
from acmix_mm.ops import available_backends, use_backend
from acmix_mm.registry import MODELS

CFG = dict(type='ACmix', num_heads=2, kernel_att=5)


def test_usual_signature():
    layer = build_conv_layer(CFG, 8, 12, 3, stride=2, padding=2, dilation=2, bias=False)
    assert isinstance(layer, ACmix)
    assert (layer.stride, layer.dilation, layer.kernel_att) == ((2, 2), (2, 2), 5)
    assert layer(torch.randn(1, 8, 9, 10)).shape == (1, 12, 5, 5)


def test_same_size_as_the_convolution_asked_for():
    x = torch.randn(1, 8, 9, 10)
    for stride, dilation, size in [(1, 1, 3), (2, 1, 3), (2, 2, 3), (1, 1, 5), (3, 1, 7)]:
        geometry = dict(stride=stride, padding=dilation * (size // 2), dilation=dilation)
        expected = nn.Conv2d(8, 8, size, **geometry)(x).shape
        assert build_conv_layer(CFG, 8, 8, size, **geometry)(x).shape == expected


@pytest.mark.parametrize('kernel_size', [1, (1, 1), [1, 1]])
def test_pointwise_is_a_plain_convolution(kernel_size):
    layer = build_conv_layer(CFG, 8, 12, kernel_size, stride=2, bias=False)
    assert type(layer) is nn.Conv2d
    assert layer.bias is None
    assert layer.stride == (2, 2)


def test_conv_module():
    block = ConvModule(8, 8, 3, padding=1, conv_cfg=CFG, norm_cfg=dict(type='BN'), act_cfg=None)
    assert block(torch.randn(2, 8, 9, 9)).shape == (2, 8, 9, 9)


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (dict(groups=2), '2 groups'),
        (dict(padding=0), r'padding must be 1, got 0'),
        (dict(kernel_size=4, padding=2), 'kernel_size must be .* odd .* got 4'),
        (dict(kernel_size=(3, 5)), r'kernel_size of ACmix must be the same in height and width'),
    ],
)
def test_refuses(change, says):
    good = dict(in_channels=8, out_channels=8, kernel_size=3, padding=1)
    with pytest.raises(ValueError, match=says):
        build_conv_layer(CFG, **(good | change))


def test_registry_builds_by_the_signature_of_a_convolution():
    cfg = dict(type='ACmix', in_channels=8, out_channels=8, kernel_size=[3, 3], padding=1)
    assert isinstance(MODELS.build(cfg), ACmix)
    with pytest.raises(TypeError, match='write kernel_size=3 instead of kernel_conv'):
        MODELS.build(dict(cfg, kernel_conv=3))


@pytest.mark.parametrize('backend', available_backends('neighborhood_attention'))
@pytest.mark.parametrize('path_weights', ['learned', 'complementary', (1, 0), (0, 1), (0.5, 0)])
def test_in_place_activation_trains(path_weights, backend):
    """Without a norm between, the activation writes into what the layer returned."""
    if backend == 'triton':
        pytest.skip("Triton's interpreter is too slow here")
    torch.manual_seed(0)
    cfg = dict(CFG, path_weights=path_weights)
    block = ConvModule(8, 8, 3, padding=1, conv_cfg=cfg, act_cfg=dict(type='ReLU', inplace=True))
    x = torch.randn(1, 8, 6, 7, requires_grad=True)
    with use_backend(backend):
        block(x).square().sum().backward()
        grad, x.grad = x.grad, None
        block.activate.inplace = False
        block(x).square().sum().backward()
    torch.testing.assert_close(grad, x.grad)
