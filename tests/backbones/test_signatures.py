"""The backbones take the arguments, and have the attributes, of their counterparts upstream."""

from inspect import signature
from typing import Any

import pytest
from torch import nn
from upstream import mmpretrain

from acmix_mm.backbones import ACmixPVT, ACmixResNet, ACmixSwin

RESNET = dict(depth=50, base_channels=8, stem_channels=8)
SWIN = dict(embed_dims=12, depths=[1, 2, 1, 1], num_heads=[1, 2, 3, 4])
PVT = dict(embed_dims=4, num_layers=[1, 2, 1, 1])

FROM_ARCH = 'None: that of arch, whose first value is the default upstream'
BASE_CHANNELS = "None, as mmdet's: base_channels, which is the same number by default"
NORM_EVAL = "mmdet's default, and that of the released configs"
ALL_OUTPUTS = "mmdet's and mmseg's default; a classifier sets (3,)"
NOT_TAKEN = 'refused, with the arguments that serve instead'
SWIN_SIZES = dict.fromkeys(SWIN, FROM_ARCH)

# Class upstream: our class, arguments for a small network, and reasons of all differences: of an
# argument that we do not take, or of another default.
COUNTERPARTS: dict[str, tuple[type, dict, dict[str, str]]] = {
    'mmdet.ResNet': (ACmixResNet, RESNET, {}),
    'mmseg.ResNet': (ACmixResNet, RESNET, dict(stem_channels=BASE_CHANNELS, norm_eval=NORM_EVAL)),
    'mmpretrain.ResNet': (
        ACmixResNet,
        RESNET,
        dict(
            stem_channels=BASE_CHANNELS,
            norm_eval=NORM_EVAL,
            out_indices=ALL_OUTPUTS,
            init_cfg='None: this very list',
        ),
    ),
    'mmdet.SwinTransformer': (ACmixSwin, SWIN, SWIN_SIZES),
    'mmseg.SwinTransformer': (ACmixSwin, SWIN, SWIN_SIZES),
    'mmpretrain.SwinTransformer': (
        ACmixSwin,
        dict(arch=SWIN),
        dict(
            arch='None: the explicit sizes of mmdet and mmseg, by default those of tiny',
            img_size='None: pretrain_img_size, which is the same number by default',
            out_indices=ALL_OUTPUTS,
            patch_cfg=NOT_TAKEN,
        ),
    ),
    'mmdet.PyramidVisionTransformer': (ACmixPVT, PVT, dict(num_layers=FROM_ARCH)),
}
# Attributes of the networks upstream, which other code may read.
ATTRIBUTES = {
    'ResNet': (
        'base_channels', 'conv_cfg', 'deep_stem', 'depth', 'dilations', 'feat_dim', 'frozen_stages',
        'norm1_name', 'norm_cfg', 'norm_eval', 'num_stages', 'out_indices', 'plugins', 'res_layers',
        'stem_channels', 'strides', 'style', 'zero_init_residual',
    ),
    'SwinTransformer': (
        'frozen_stages', 'num_features', 'out_indices', 'use_abs_pos_embed',
        # mmpretrain alone has
        'depths', 'embed_dims', 'interpolate_mode', 'num_heads', 'num_layers',
        'out_after_downsample',
    ),
    'PyramidVisionTransformer': (
        'embed_dims', 'num_heads', 'num_layers', 'num_stages', 'out_indices', 'patch_sizes',
        'sr_ratios', 'strides',
    ),
}  # fmt: skip
MODULES = {
    'ResNet': ('conv1', 'norm1', 'relu', 'maxpool', 'layer1', 'layer4'),
    'SwinTransformer': ('patch_embed', 'drop_after_pos', 'stages', 'norm3'),
    'PyramidVisionTransformer': (),
}


@pytest.fixture(params=COUNTERPARTS)
def counterpart(request) -> tuple[type, type, dict, dict[str, str]]:
    library, name = request.param.split('.')
    if library == 'mmpretrain':
        backbones = mmpretrain('models.backbones')
    else:
        backbones = pytest.importorskip(f'{library}.models.backbones')
    return getattr(backbones, name), *COUNTERPARTS[request.param]


def alike(value: Any) -> Any:
    """Lists and tuples of the same values are the same default."""
    return tuple(value) if isinstance(value, list) else value


def test_arguments_and_defaults(counterpart):
    theirs, ours, _, exceptions = counterpart
    accepted = signature(ours).parameters
    different = {
        name
        for name, parameter in signature(theirs).parameters.items()
        if name not in accepted or alike(accepted[name].default) != alike(parameter.default)
    }
    assert different == set(exceptions)


def test_arguments_that_are_not_taken_are_refused_with_advice(counterpart):
    theirs, ours, small, exceptions = counterpart
    for name, reason in exceptions.items():
        if reason == NOT_TAKEN:
            with pytest.raises(TypeError, match=f'{name}=.* is now written'):
                ours(**small, **{name: signature(theirs).parameters[name].default})


def test_defaults_of_upstream_written_out_change_nothing(counterpart):
    theirs, ours, small, exceptions = counterpart
    written_out = {
        name: parameter.default
        for name, parameter in signature(theirs).parameters.items()
        if name not in {*small, *exceptions}
    }
    shapes = [
        {name: tensor.shape for name, tensor in ours(**kwargs).state_dict().items()}
        for kwargs in (small, small | written_out)
    ]
    assert shapes[0] == shapes[1]


def test_attributes(counterpart):
    theirs, ours, small, exceptions = counterpart
    small = small | dict(out_indices=(1, 3))
    network, upstream = ours(**small), theirs(**small)
    of_other_default = {*exceptions} - {*small}
    names = [
        name
        for name in ATTRIBUTES[theirs.__name__]
        if hasattr(upstream, name) and name not in of_other_default
    ]
    assert len(names) >= 4
    assert {name: alike(getattr(network, name, 'missing')) for name in names} == {
        name: alike(getattr(upstream, name)) for name in names
    }
    for name in MODULES[theirs.__name__]:
        assert isinstance(getattr(network, name), nn.Module), name
