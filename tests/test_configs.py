"""Every config is parsed; every pairing of backbone and heads in them is built and takes a step."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from steps import check_weight_decay, train_and_predict

import acmix_mm  # noqa: F401  makes mmengine find the configs of mmseg
from acmix_mm.preflight.data_paths import dataset_paths, leaf_datasets
from acmix_mm.preflight.libraries import check_scope

ROOT = Path(__file__).parents[1]
# Of a backbone, what is not its size.
KIND = ('type', 'base_channels', 'dilations', 'out_indices')


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
    assert len(CONFIGS) == 63
    assert len(PAIRINGS) == 28


@pytest.mark.parametrize('name', CONFIGS)
def test_config(name):
    assert f'python tools/train.py {name}' in (ROOT / name).read_text()
    cfg = CONFIGS[name]
    assert 'acmix_mm' in cfg.custom_imports.imports
    assert cfg.default_scope in ('mmdet', 'mmseg', 'mmpretrain')
    assert cfg.model.backbone.type.startswith('ACmix')


@pytest.mark.parametrize('name', [name for name in CONFIGS if re.search(r'_\d+xb\d+', name)])
def test_the_name_tells_the_images_a_step(name):
    gpus, images = map(int, re.search(r'_(\d+)xb(\d+)', name).groups())
    assert CONFIGS[name].train_dataloader.batch_size == images
    if 'auto_scale_lr' in CONFIGS[name]:
        assert CONFIGS[name].auto_scale_lr.base_batch_size == gpus * images


@pytest.mark.parametrize('name', [name for name in CONFIGS if name.endswith('_coco.py')])
def test_images_and_instances_of_coco_are_enough(name):
    for split in ('train', 'val', 'test'):
        (dataset,) = leaf_datasets(CONFIGS[name][f'{split}_dataloader'].dataset)
        assert dataset.type == 'CocoDataset'
        assert set(dataset_paths(dataset)) == {'ann_file', 'data_prefix.img'}


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
def test_80k_iterations_are_40k_of_half_the_batch_and_learning_rate(name):
    shorter = CONFIGS[name.replace('4xb4-80k', '8xb4-40k')]
    cfg = CONFIGS[name]
    assert cfg.model == shorter.model
    assert cfg.train_dataloader == shorter.train_dataloader
    assert (cfg.train_cfg.max_iters, shorter.train_cfg.max_iters) == (80000, 40000)
    assert (cfg.param_scheduler[-1].end, shorter.param_scheduler[-1].end) == (80000, 40000)
    optimizer, other = cfg.optim_wrapper.optimizer, shorter.optim_wrapper.optimizer
    assert other == optimizer | dict(lr=2 * optimizer.lr)


@pytest.mark.parametrize('name', [n for n in CONFIGS if '-s-acmix' in n and '_ms-3x_' not in n])
def test_small_is_tiny_with_another_backbone(name):
    tiny = name.replace('-s-acmix', '-t-acmix')
    assert differences(name, tiny) == {'model'}
    backbone, other = CONFIGS[name].model.backbone, CONFIGS[tiny].model.backbone
    changed = {key for key in backbone if backbone[key] != other[key]}
    if 'imagenet' in name:  # from nothing; Swin with another drop path
        assert changed - {'drop_path_rate'} == {'num_layers' if 'pvt' in name else 'depths'}
        return
    assert changed == {'num_layers' if 'pvt' in name else 'depths', 'init_cfg'}
    assert 'small' in backbone.init_cfg.checkpoint
    assert 'tiny' in other.init_cfg.checkpoint


OTHER_DEPTHS = {
    name: other
    for name in CONFIGS
    if (other := re.sub(r'resnet(26|38)', 'resnet50', re.sub(r'san1[59]', 'san10', name))) != name
    and other in CONFIGS
}


@pytest.mark.parametrize(('name', 'other'), OTHER_DEPTHS.items())
def test_depth_and_start_are_the_only_differences(name, other):
    assert differences(name, other) == {'model'}
    model, backbone = CONFIGS[name].model, CONFIGS[name].model.backbone
    assert f'{backbone.depth}-acmix' in name
    assert model | dict(backbone=None) == CONFIGS[other].model | dict(backbone=None)
    start = dict(frozen_stages=-1, init_cfg={}) if 'init_cfg' in backbone else {}  # from nothing
    changed = dict(depth=backbone.depth, **start)
    assert backbone == {**CONFIGS[other].model.backbone, **changed}


@pytest.mark.parametrize('name', CONFIGS)
def test_backbone_of_full_size_fits_the_rest(name):
    model = CONFIGS[name].model
    with torch.device('meta'):
        outs = MODELS.build(model.backbone)(torch.empty(1, 3, 64, 64))
    parts = [model[k] for k in ('neck', 'panoptic_head', 'decode_head', 'head') if k in model]
    wanted = next(part.in_channels for part in parts if 'in_channels' in part)
    assert [out.shape[1] for out in outs] == ([wanted] if isinstance(wanted, int) else wanted)


@pytest.mark.parametrize('name', PAIRINGS)
def test_train_and_predict(name):
    cfg = CONFIGS[name]
    if cfg.default_scope == 'mmpretrain':
        try:
            check_scope('mmpretrain')
        except ImportError as error:
            pytest.skip(str(error))
    model, optimizer, losses, predictions = train_and_predict(cfg)
    assert losses
    assert all(torch.isfinite(loss).all() for loss in losses.values())
    assert len(predictions) == 2
    # Everything that is trained has a gradient: DDP ends over what has none.
    states = optimizer.optimizer.state
    assert not [n for n, p in model.named_parameters() if p.requires_grad and not states.get(p)]
    # It has reached both paths of every layer. The values may be the same still: in the beginning,
    # steps of SGD are too small for single precision.
    weights = {n: p for n, p in model.backbone.named_parameters() if '.mix.' in n}
    assert len(weights) >= 8
    for weight_name, weight in weights.items():
        state = states[weight]
        assert state.get('exp_avg', state.get('momentum_buffer')) != 0, weight_name
    # Detection transformers keep upstream's rules for all but the backbone.
    transformer = any(name in str(cfg.model) for name in ('DINO', 'Mask2Former'))
    check_weight_decay(model.backbone if transformer else model, optimizer)
    if transformer:
        rates = {p: group['lr'] for group in optimizer.param_groups for p in group['params']}
        slow = optimizer.optimizer.defaults['lr'] / 10
        assert {rates[p] for p in model.backbone.parameters()} == {slow}
