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


@pytest.mark.parametrize('size', [1, 3, 5])
def test_padding_by_name(size):
    for groups, cfg in ((1, CFG), (4, dict(CFG, grouped='conv'))):
        layer = build_conv_layer(cfg, 8, 8, size, padding='same', dilation=2, groups=groups)
        assert isinstance(layer, ACmix) == (size > 1 and groups == 1)
        assert layer(torch.randn(1, 8, 9, 10)).shape == (1, 8, 9, 10)
    assert build_conv_layer(CFG, 8, 8, 1, padding='valid')(torch.randn(1, 8, 9, 10)).shape[2] == 9


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
        (dict(groups=2), r"2 groups.* dict\(type='ACmix', grouped='conv'\)"),
        (dict(padding=0), r'padding must be 1, got 0'),
        (dict(padding='valid'), r"padding must be 1, got 'valid'"),
        (dict(padding='same', stride=2), r"padding must be 1, got 'same'"),
        (dict(padding=[1, 1, 1]), r'padding .* got \[1, 1, 1\]'),
        (dict(kernel_size=4, padding=2), 'kernel_size must be .* odd .* got 4'),
        (dict(kernel_size=(3, 5)), r'kernel_size of ACmix must be the same in height and width'),
    ],
)
def test_refuses(change, says):
    good = dict(in_channels=8, out_channels=8, kernel_size=3, padding=1)
    with pytest.raises(ValueError, match=says):
        build_conv_layer(CFG, **(good | change))


def test_unknown_treatment_of_groups_is_refused():
    with pytest.raises(ValueError, match="grouped must be 'error' or 'conv', got 'skip'"):
        build_conv_layer(dict(CFG, grouped='skip'), 8, 8, 3, padding=1)


@pytest.mark.parametrize('groups', [2, 8])
def test_grouped_requests_as_plain_convolutions(groups):
    cfg = dict(CFG, grouped='conv')
    layer = build_conv_layer(cfg, 8, 8, (3, 5), stride=2, padding=(1, 2), groups=groups, bias=False)
    assert type(layer) is nn.Conv2d
    assert (layer.groups, layer.kernel_size, layer.stride) == (groups, (3, 5), (2, 2))
    assert (layer.padding, layer.bias) == ((1, 2), None)
    assert isinstance(build_conv_layer(cfg, 8, 8, 3, padding=1), ACmix)


def test_depthwise_separable_network():
    """RTMDet's backbone has convolutions of both kinds."""
    cspnext = pytest.importorskip('mmdet.models').CSPNeXt
    cfg = dict(CFG, grouped='conv')
    backbone = cspnext(widen_factor=0.125, deepen_factor=0.34, conv_cfg=cfg)
    depthwise = [
        m for m in backbone.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (5, 5)
    ]
    assert len(depthwise) == 6
    assert all(type(m) is nn.Conv2d and m.groups == m.in_channels for m in depthwise)
    assert [out.shape[1] for out in backbone(torch.randn(2, 3, 32, 32))] == [32, 64, 128]


@pytest.mark.parametrize('inherited', [dict(deform_groups=1), dict(fallback_on_stride=False)])
def test_options_of_deformable_convolutions_are_refused(inherited):
    name = next(iter(inherited))
    with pytest.raises(TypeError, match=rf"{name}=.*dict\(_delete_=True, type='ACmix'\)"):
        build_conv_layer(CFG | inherited, 8, 8, 3, padding=1)


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
