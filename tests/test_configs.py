"""Every config is parsed; every pairing of backbone and heads in them is built and takes steps."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from steps import train_and_predict

import acmix_mm  # noqa: F401  makes mmengine find the configs of mmseg

ROOT = Path(__file__).parents[1]
# Of a backbone, what is not its size.
KIND = ('type', 'base_channels', 'dilations', 'out_indices')

# Beside norms, biases and the weights of the paths, what weight decay spares.
SPARED = ('fc_bias', 'relative_position_bias_table', 'pos_embed')


def pairing(model):
    kind = [(name, model.backbone.get(name)) for name in KIND]
    return str({**model, 'backbone': kind})


CONFIGS = {
    str(path.relative_to(ROOT)): Config.fromfile(path)
    for path in sorted((ROOT / 'configs').rglob('*.py'))
    if '_base_' not in path.parts
}
# Configs that differ in no more than schedule and size of the backbone share one name: the last.
PAIRINGS = {pairing(cfg.model): name for name, cfg in CONFIGS.items()}.values()


def test_all_configs_are_found():
    assert len(CONFIGS) == 44
    assert len(PAIRINGS) == 19


@pytest.mark.parametrize('name', CONFIGS)
def test_config(name):
    assert f'python tools/train.py {name}' in (ROOT / name).read_text()
    cfg = CONFIGS[name]
    assert 'acmix_mm' in cfg.custom_imports.imports
    assert cfg.default_scope in ('mmdet', 'mmseg')
    assert cfg.model.backbone.type.startswith('ACmix')


def test_the_front_door_is_the_coco_config():
    def contents(name):
        return {key: value for key, value in CONFIGS[name].items() if key != 'filename'}

    coco = 'configs/resnet_acmix/mask-rcnn_resnet50-acmix_fpn_1x_coco.py'
    assert contents('configs/mask_rcnn_acmix.py') == contents(coco)


def differences(name, other):
    """Top-level keys in which two configs differ."""
    a, b = CONFIGS[name], CONFIGS[other]
    return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)} - {'filename'}


@pytest.mark.parametrize('name', [name for name in CONFIGS if '_ms-3x_' in name])
def test_longer_training_is_the_only_difference(name):
    changed = {'train_cfg', 'train_dataloader', 'param_scheduler', 'ms_3x'}
    assert differences(name, name.replace('_ms-3x_', '_1x_')) == changed
    assert CONFIGS[name].train_cfg.max_epochs == CONFIGS[name].param_scheduler[-1].end == 36
    scales = CONFIGS[name].train_dataloader.dataset.pipeline[2].scale
    assert scales == [(1333, 640), (1333, 800)]


@pytest.mark.parametrize('name', [name for name in CONFIGS if '4xb4-80k' in name])
def test_80k_iterations_see_as_many_images_as_40k(name):
    shorter = CONFIGS[name.replace('4xb4-80k', '8xb4-40k')]
    cfg = CONFIGS[name]
    assert cfg.model == shorter.model
    assert cfg.train_dataloader == shorter.train_dataloader
    assert cfg.train_dataloader.batch_size == 4
    assert (cfg.train_cfg.max_iters, shorter.train_cfg.max_iters) == (80000, 40000)
    assert (cfg.param_scheduler[-1].end, shorter.param_scheduler[-1].end) == (80000, 40000)


@pytest.mark.parametrize('name', [n for n in CONFIGS if '-s-acmix' in n and '_ms-3x_' not in n])
def test_small_is_tiny_with_another_backbone(name):
    tiny = name.replace('-s-acmix', '-t-acmix')
    assert differences(name, tiny) == {'model'}
    backbone, other = CONFIGS[name].model.backbone, CONFIGS[tiny].model.backbone
    assert {key for key in backbone if backbone[key] != other[key]} == {
        'num_layers' if 'pvt' in name else 'depths', 'init_cfg'
    }  # fmt: skip
    assert 'small' in backbone.init_cfg.checkpoint
    assert 'tiny' in other.init_cfg.checkpoint


@pytest.mark.parametrize('name', CONFIGS)
def test_backbone_of_full_size_fits_the_rest(name):
    cfg = CONFIGS[name]
    with torch.device('meta'):
        outs = MODELS.build(cfg.model.backbone)(torch.empty(1, 3, 64, 64))
    head = next(cfg.model[k] for k in ('neck', 'panoptic_head', 'decode_head') if k in cfg.model)
    assert [out.shape[1] for out in outs] == list(head.in_channels)


@pytest.mark.parametrize('name', PAIRINGS)
def test_train_and_predict(name):
    model, optimizer, losses, predictions = train_and_predict(CONFIGS[name].copy())
    assert len(losses) > 1
    assert all(torch.isfinite(loss).all() for loss in losses.values())
    assert len(predictions) == 2
    parameters = dict(model.backbone.named_parameters())
    # The value itself may be the same still: steps of SGD in a warm-up are too small for it.
    states = [optimizer.optimizer.state[p] for n, p in parameters.items() if 'mix.alpha' in n]
    assert any(state.get('exp_avg', state.get('momentum_buffer')) for state in states if state)
    decays = {p: group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    for parameter_name, parameter in parameters.items():
        if parameter.requires_grad:
            spared = parameter.ndim == 1 or parameter_name.endswith(SPARED)
            decay = 0 if spared else optimizer.optimizer.defaults['weight_decay']
            assert decays[parameter] == decay, parameter_name
