"""The optimizer constructor: learning rate and weight decay of every parameter."""

import pytest
import torch
from mmcv.ops import DeformConv2dPack
from mmengine.optim import build_optim_wrapper
from torch import nn

from acmix_mm.backbones import ACmixPVT, ACmixResNet, ACmixSAN, ACmixSwin
from acmix_mm.layers import ACmix

CONSTRUCTOR = 'ACmixOptimWrapperConstructor'
DECAY = 0.1
# Each backbone, with the names of its parameters that never decay, and how many of them it has: one
# alpha and one beta in each of 8 (ResNet), 10 (SAN), 4 (PVT) and 8 (Swin) layers.
BACKBONES = dict(
    resnet=(lambda: ACmixResNet(26, base_channels=16), {'alpha': 8, 'beta': 8}),
    san=(lambda: ACmixSAN(10, base_channels=32), {'alpha': 10, 'beta': 10}),
    pvt=(
        lambda: ACmixPVT(embed_dims=8, num_layers=(1, 1, 1, 1)),
        {'alpha': 4, 'beta': 4, 'fc_bias': 4, 'pos_embed': 4},
    ),
    swin=(
        lambda: ACmixSwin(embed_dims=12, depths=(2, 2, 2, 2), use_abs_pos_embed=True),
        {
            'alpha': 8,
            'beta': 8,
            'fc_bias': 8,
            'relative_position_bias_table': 8,
            'absolute_pos_embed': 1,
        },
    ),
)
OPTIMIZERS = dict(
    sgd=dict(type='SGD', lr=1.0, momentum=0.9, weight_decay=DECAY),
    adamw=dict(type='AdamW', lr=1.0, weight_decay=DECAY),
)
RULES = dict(norm_decay_mult=0.2, bias_decay_mult=0.3, dwconv_decay_mult=0.4, flat_decay_mult=0.5)


def options(model: nn.Module, optimizer: dict = OPTIMIZERS['sgd'], **cfg) -> dict[str, tuple]:
    """Build an optimizer, and return learning rate and weight decay of each parameter by name."""
    groups = build_optim_wrapper(model, dict(optimizer=optimizer) | cfg).optimizer.param_groups
    by_parameter = {
        id(parameter): (group['lr'], group['weight_decay'])
        for group in groups
        for parameter in group['params']
    }
    return {name: by_parameter[id(parameter)] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('paramwise_cfg', [None, dict(norm_decay_mult=0.5), RULES], ids=str)
@pytest.mark.parametrize('backbone', BACKBONES)
def test_only_the_exempt_parameters_differ_from_the_default(backbone, paramwise_cfg, optimizer):
    build, counts = BACKBONES[backbone]
    model = build()
    cfg = dict(optimizer=OPTIMIZERS[optimizer], paramwise_cfg=paramwise_cfg)
    default = options(model, **cfg)
    ours = options(model, **cfg, constructor=CONSTRUCTOR)
    exempt = {name for name in ours if name.rpartition('.')[2] in counts}
    endings = [name.rpartition('.')[2] for name in exempt]
    assert {ending: endings.count(ending) for ending in counts} == counts
    assert ours == default | dict.fromkeys(exempt, (1.0, 0.0))


@pytest.mark.parametrize('backbone', BACKBONES)
def test_slow_backbone_keeps_the_rules_for_norms_and_biases(backbone):
    model = nn.ModuleDict(dict(backbone=BACKBONES[backbone][0](), head=nn.Linear(4, 4)))
    rules = dict(norm_decay_mult=0.0, bias_decay_mult=0.0)
    keys = dict(custom_keys={'backbone': dict(lr_mult=0.1)})
    same_speed = options(model, paramwise_cfg=rules, constructor=CONSTRUCTOR)
    slow = options(model, paramwise_cfg=rules | keys, constructor=CONSTRUCTOR)
    expected = {
        name: (0.1 if name.startswith('backbone.') else 1.0, decay)
        for name, (_, decay) in same_speed.items()
    }
    assert slow == expected
    assert {decay for name, (_, decay) in slow.items() if name.startswith('backbone.')} == {
        0,
        DECAY,
    }
    # The default constructor lets the whole backbone decay.
    default = options(model, paramwise_cfg=rules | keys)
    assert {value for name, value in default.items() if name.startswith('backbone.')} == {
        (0.1, DECAY)
    }


class DeformableNet(nn.Module):
    """One module for each rule of mmengine: norm, bias, depthwise convolution, flat parameter."""

    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(2, 4)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.deformable = DeformConv2dPack(4, 4, 3)
        self.scale = nn.Parameter(torch.ones(4))


def test_all_rules_of_the_decay_apply_to_parameters_that_a_key_matches():
    model = nn.ModuleDict(dict(net=DeformableNet()))
    default = options(model, paramwise_cfg=RULES)
    keys = dict(custom_keys={'net': dict(lr_mult=1.0)})
    assert options(model, paramwise_cfg=RULES | keys, constructor=CONSTRUCTOR) == default
    # Every rule has its effect, and mmengine exempts the offsets of deformable convolutions.
    assert {decay for _, decay in default.values()} == {
        DECAY, *(DECAY * factor for factor in RULES.values())
    }  # fmt: skip
    assert default['net.deformable.conv_offset.bias'] == (1.0, DECAY)


@pytest.mark.parametrize(
    ('keys', 'expected'),
    [
        ({'mix': dict(decay_mult=2.0)}, (1.0, 2 * DECAY)),
        ({'mix': dict(lr_mult=0.5, decay_mult=1.0)}, (0.5, DECAY)),
        ({'mix': dict(lr_mult=0.5)}, (0.5, 0.0)),
    ],
    ids=str,
)
def test_key_that_sets_decay_mult_overrides_the_rules(keys, expected):
    paramwise_cfg = dict(custom_keys=keys, norm_decay_mult=0.0)
    ours = options(ACmix(8, 8), paramwise_cfg=paramwise_cfg, constructor=CONSTRUCTOR)
    assert ours['mix.alpha'] == ours['mix.beta'] == expected


def test_key_can_set_the_rules_for_its_parameters():
    model = nn.ModuleDict(dict(backbone=DeformableNet(), head=DeformableNet()))
    for rules in ({}, RULES):
        keys = dict(
            custom_keys={'backbone': dict(lr_mult=0.1, norm_decay_mult=0, bias_decay_mult=0)}
        )
        ours = options(model, paramwise_cfg=keys | rules, constructor=CONSTRUCTOR)
        default = options(model, paramwise_cfg=rules)
        zero = ('norm.weight', 'norm.bias', 'depthwise.bias')
        assert ours == {
            name: (0.1, 0 if name.endswith(zero) else decay) if 'backbone' in name else (lr, decay)
            for name, (lr, decay) in default.items()
        }


def test_method_of_that_name_is_not_a_list():
    class Timm(nn.Linear):
        def no_weight_decay(self):
            return {'weight'}

    assert options(Timm(2, 2), constructor=CONSTRUCTOR)['weight'] == (1.0, DECAY)


def wrapped(module: nn.Module, name: str) -> nn.Module:
    wrapper = nn.Module()
    wrapper.add_module(name, module)
    return wrapper


@pytest.mark.parametrize('name', ['_fsdp_wrapped_module', '_checkpoint_wrapped_module'])
def test_keys_match_the_names_without_wrappers(name):
    # The model itself, a unit in it, and a module in that are wrapped.
    layer = ACmix(8, 8)
    layer.mix = wrapped(layer.mix, name)
    model = wrapped(nn.ModuleDict(dict(backbone=nn.Sequential(wrapped(layer, name)))), name)
    keys = {'backbone.0.qkv': dict(lr_mult=0.5), 'backbone.0.mix.alpha': dict(lr_mult=0.25)}
    ours = options(model, paramwise_cfg=dict(custom_keys=keys), constructor=CONSTRUCTOR)
    prefix = f'{name}.backbone.0.{name}.'
    assert ours[f'{prefix}qkv.weight'] == (0.5, DECAY)
    assert ours[f'{prefix}mix.{name}.alpha'] == (0.25, 0.0)
    assert ours[f'{prefix}mix.{name}.beta'] == (1.0, 0.0)


@pytest.mark.parametrize('keys', [{}, {'mix': dict(lr_mult=0.5)}], ids=str)
def test_optimizer_without_weight_decay(keys):
    # mmengine, too, does not apply this rule without a weight decay.
    paramwise_cfg = dict(custom_keys=keys, flat_decay_mult=0.5)
    for optimizer, default in ((dict(type='SGD', lr=1.0), 0), (dict(type='AdamW', lr=1.0), 0.01)):
        ours = options(ACmix(8, 8), optimizer, paramwise_cfg=paramwise_cfg, constructor=CONSTRUCTOR)
        assert ours['qkv.weight'] == (1.0, default)  # that of torch
        assert ours['mix.alpha'] == (0.5 if keys else 1.0, 0.0)


def test_frozen_parameters_stay_out():
    layer = ACmix(8, 8)
    layer.mix.alpha.requires_grad_(False)
    optimizer = build_optim_wrapper(
        layer, dict(optimizer=OPTIMIZERS['sgd'], constructor=CONSTRUCTOR)
    ).optimizer
    found = {id(parameter) for group in optimizer.param_groups for parameter in group['params']}
    assert found == {id(p) for p in layer.parameters() if p.requires_grad}


def test_log_states_the_final_decay(monkeypatch):
    lines = []
    monkeypatch.setattr('acmix_mm.optim.print_log', lambda line, _: lines.append(line))
    keys = dict(custom_keys={'backbone': dict(lr_mult=0.5)})
    model = nn.ModuleDict(dict(backbone=ACmix(8, 8)))
    options(model, paramwise_cfg=keys, constructor=CONSTRUCTOR)
    expected = [
        f'paramwise_options -- backbone.mix.{n}:weight_decay=0.0' for n in ('alpha', 'beta')
    ]
    assert lines == expected
