"""Weight decay: the constructor of optimizers, and the recipe of the README."""

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import nn

from acmix_mm.backbones import ACmixPVT, ACmixResNet, ACmixSAN, ACmixSwin
from acmix_mm.layers import ACmix

CONSTRUCTOR = 'ACmixOptimWrapperConstructor'
DECAY = 0.1
BACKBONES = dict(
    resnet=lambda: ACmixResNet(26, base_channels=16),
    san=lambda: ACmixSAN(10, base_channels=32),
    pvt=lambda: ACmixPVT(embed_dims=8, num_layers=(1, 1, 1, 1)),
    swin=lambda: ACmixSwin(embed_dims=12, depths=(2, 2, 2, 2), use_abs_pos_embed=True),
)
WITHOUT_DECAY = (
    'mix.alpha', 'mix.beta', 'shift_conv.fc_bias', 'relative_position_bias_table', 'pos_embed',
)  # fmt: skip


def options(model: nn.Module, **cfg) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter by its name."""
    optimizer = dict(type='SGD', lr=1.0, weight_decay=DECAY)
    groups = build_optim_wrapper(model, dict(optimizer=optimizer) | cfg).optimizer.param_groups
    by_parameter = {
        id(parameter): (group['lr'], group['weight_decay'])
        for group in groups
        for parameter in group['params']
    }
    return {name: by_parameter[id(parameter)] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize('paramwise_cfg', [None, dict(norm_decay_mult=0.5)])
@pytest.mark.parametrize('backbone', BACKBONES)
def test_what_does_not_decay(backbone, paramwise_cfg):
    model = BACKBONES[backbone]()
    plain = options(model, paramwise_cfg=paramwise_cfg)
    ours = options(model, paramwise_cfg=paramwise_cfg, constructor=CONSTRUCTOR)
    exempt = {name for name in ours if name.endswith(WITHOUT_DECAY)}
    assert any(name.endswith('mix.alpha') for name in exempt)
    assert {name: ours[name] for name in exempt} == dict.fromkeys(exempt, (1.0, 0.0))
    others = ours.keys() - exempt
    assert {name: ours[name] for name in others} == {name: plain[name] for name in others}


def test_slow_backbone_keeps_the_rules_for_norms_and_biases():
    model = nn.ModuleDict(dict(backbone=BACKBONES['swin'](), head=nn.Linear(4, 4)))
    paramwise_cfg = dict(
        custom_keys={'backbone': dict(lr_mult=0.1)}, norm_decay_mult=0.0, bias_decay_mult=0.0
    )
    ours = options(model, paramwise_cfg=paramwise_cfg, constructor=CONSTRUCTOR)
    block = 'backbone.stages.0.blocks.0.'
    for name in ('norm1.weight', 'norm1.bias', 'attn.qkv.bias', 'attn.mix.alpha'):
        assert ours[block + name] == (0.1, 0.0), name
    assert ours[f'{block}attn.qkv.weight'] == (0.1, DECAY)
    assert ours['head.weight'] == (1.0, DECAY)
    assert ours['head.bias'] == (1.0, 0.0)


def test_key_that_sets_the_decay_counts_most():
    paramwise_cfg = dict(custom_keys={'mix': dict(decay_mult=2.0)}, norm_decay_mult=0.0)
    ours = options(ACmix(8, 8), paramwise_cfg=paramwise_cfg, constructor=CONSTRUCTOR)
    assert ours['mix.alpha'] == (1.0, 2 * DECAY)


def test_names_are_those_without_fsdp():
    class Unit(nn.Module):
        def __init__(self, module):
            super().__init__()
            self._fsdp_wrapped_module = module

    model = nn.Sequential(Unit(ACmix(8, 8)))
    paramwise_cfg = dict(custom_keys={'0.qkv': dict(lr_mult=0.5)})
    ours = options(model, paramwise_cfg=paramwise_cfg, constructor=CONSTRUCTOR)
    assert ours['0._fsdp_wrapped_module.qkv.weight'] == (0.5, DECAY)
    assert ours['0._fsdp_wrapped_module.mix.alpha'] == (1.0, 0.0)


def test_optimizer_without_decay():
    optimizer = dict(type='SGD', lr=1.0)
    build_optim_wrapper(ACmix(8, 8), dict(optimizer=optimizer, constructor=CONSTRUCTOR))


def test_recipe_of_the_readme(tmp_path):
    """A config of mmdet with the lines of the README."""
    file = tmp_path / 'project.py'
    file.write_text(
        """
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['acmix_mm'])
model = dict(backbone=dict(type='ACmixResNet'))
optim_wrapper = dict(constructor='ACmixOptimWrapperConstructor')
"""
    )
    cfg = Config.fromfile(file)
    model = ACmixResNet(26, base_channels=16)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    decays = {id(group['params'][0]): group['weight_decay'] for group in groups}
    for name, parameter in model.named_parameters():
        expected = 0.0 if name.endswith(('alpha', 'beta')) else 1e-4
        assert decays[id(parameter)] == expected, name
