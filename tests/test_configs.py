"""Every config is parsed; every pairing of backbone and heads in them is built and takes a step."""

import inspect
import logging
import re
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import mmengine
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    MODELS,
    PARAM_SCHEDULERS,
    VISBACKENDS,
    VISUALIZERS,
    init_default_scope,
)
from mmengine.runner import Runner
from steps import check_weight_decay, train_and_predict
from versions import needs_mmpretrain

import acmix_mm  # noqa: F401  makes mmengine find the configs of mmseg
from acmix_mm.preflight.data_paths import dataset_paths, leaf_datasets
from acmix_mm.preflight.libraries import check_scope

ROOT = Path(__file__).parents[1]
# Options of a backbone that do not belong to its size.
KIND = ('type', 'base_channels', 'dilations', 'out_indices')


def pairing(model):
    kind = [(name, model.backbone.get(name)) for name in KIND]
    return str({**model, 'backbone': kind})


# Top-level keys that a config may have: arguments of the runner, keys that other tools read, and
# variables of the upstream configs that ours inherit from. Helper variables of ours are not among
# them.
READ_BY_RUNNER = set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'}
READ_BY_TOOLS = {
    'custom_imports', 'data_root', 'data_source', 'tta_model', 'vis_backends',
}  # fmt: skip
OF_UPSTREAM = {
    'backbone_norm_cfg', 'backend_args', 'batch_augments', 'bgr_mean', 'bgr_std', 'checkpoint_file',
    'crop_size', 'dataset_aug', 'dataset_train', 'dataset_type', 'dynamic_intervals', 'embed_multi',
    'image_size', 'img_ratios', 'interval', 'max_epochs', 'max_iters', 'norm_cfg', 'num_classes',
    'num_stuff_classes', 'num_things_classes', 'optimizer', 'test_pipeline', 'train_pipeline',
    'tta_pipeline',
}  # fmt: skip

# Detection transformers, which train the backbone at a tenth of the learning rate, and their bases.
TRANSFORMERS = {
    f'configs/swin_acmix/{name}.py': base
    for name, base in {
        'dino-4scale_swin-t-acmix_8xb2-12e_coco': 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
        'mask2former_swin-t-acmix_8xb2-lsj-50e_coco': (
            'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'
        ),
        'mask2former_swin-t-acmix_8xb2-160k_ade20k-512x512': (
            'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'
        ),
    }.items()
}
NAMES = [
    str(path.relative_to(ROOT))
    for path in sorted((ROOT / 'configs').rglob('*.py'))
    if '_base_' not in path.parts
]
# Those of ImageNet inherit from configs of mmpretrain, without which they cannot be parsed.
NEED_MMPRETRAIN = [name for name in NAMES if name.startswith('configs/imagenet/')]
CONFIGS = {
    name: Config.fromfile(ROOT / name)
    for name in NAMES
    if find_spec('mmpretrain') or name not in NEED_MMPRETRAIN
}
# One config for each pairing: the last one of those that differ only in schedule and backbone size.
PAIRINGS = {pairing(cfg.model): name for name, cfg in CONFIGS.items()}.values()


def test_all_configs_are_found():
    assert len(NAMES) == 66
    assert len(NEED_MMPRETRAIN) == 10


@needs_mmpretrain
def test_all_configs_are_parsed():
    assert len(CONFIGS) == 66
    assert len(PAIRINGS) == 31


@pytest.mark.parametrize('name', CONFIGS)
def test_config(name):
    assert f'python tools/train.py {name}' in (ROOT / name).read_text()
    cfg = CONFIGS[name]
    assert 'acmix_mm' in cfg.custom_imports.imports
    assert cfg.default_scope in ('mmdet', 'mmseg', 'mmpretrain')
    assert cfg.model.backbone.type.startswith('ACmix')


@pytest.mark.parametrize('name', CONFIGS)
def test_no_helper_variables_stay_in_the_config(name, tmp_path):
    CONFIGS[name].dump(tmp_path / 'dumped.py')
    dumped = Config.fromfile(tmp_path / 'dumped.py').to_dict()
    assert dumped.keys() - READ_BY_RUNNER - READ_BY_TOOLS - OF_UPSTREAM == set()
    assert dumped.keys() >= {'model', 'train_dataloader', 'optim_wrapper', 'default_scope'}
    assert '_delete_' not in str(dumped)


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
    changed = {'train_cfg', 'train_dataloader', 'train_pipeline', 'param_scheduler'}
    assert differences(name, name.replace('_ms-3x_', '_1x_')) == changed
    assert CONFIGS[name].train_cfg.max_epochs == CONFIGS[name].param_scheduler[-1].end == 36
    pipeline = CONFIGS[name].train_dataloader.dataset.pipeline
    assert pipeline[2].scale == [(1333, 640), (1333, 800)]
    assert CONFIGS[name].train_pipeline == pipeline


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
    assert (backbone.arch, other.arch) == ('small', 'tiny')
    if 'imagenet' in name:  # random initial weights; Swin with another drop path rate
        assert changed - {'drop_path_rate'} == {'arch'}
        return
    assert changed == {'arch', 'init_cfg'}
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
    # The smaller ResNets start from random weights.
    start = dict(frozen_stages=-1, init_cfg={}) if 'init_cfg' in backbone else {}
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


def skip_without_library(cfg):
    if cfg.default_scope == 'mmpretrain':
        try:
            check_scope('mmpretrain')
        except ImportError as error:
            pytest.skip(str(error))


@pytest.mark.parametrize('name', PAIRINGS)
def test_train_and_predict(name):
    cfg = deepcopy(CONFIGS[name])
    skip_without_library(cfg)
    model, optimizer, losses, predictions = train_and_predict(cfg)
    assert losses
    assert all(torch.isfinite(loss).all() for loss in losses.values())
    assert len(predictions) == 2
    # Everything that is trained has a gradient; a parameter without one is an error in DDP.
    states = optimizer.optimizer.state
    assert not [n for n, p in model.named_parameters() if p.requires_grad and not states.get(p)]
    # The gradient has reached both paths of every layer. The weights themselves need not have
    # changed: a step of SGD may be too small for single precision.
    weights = {n: p for n, p in model.backbone.named_parameters() if '.mix.' in n}
    assert len(weights) >= 8
    for weight_name, weight in weights.items():
        state = states[weight]
        assert state.get('exp_avg', state.get('momentum_buffer')) != 0, weight_name
    check_weight_decay(model.backbone if name in TRANSFORMERS else model, optimizer)


@pytest.mark.parametrize(('name', 'upstream'), TRANSFORMERS.items())
def test_detection_transformers_keep_the_rules_of_their_base_outside_the_backbone(name, upstream):
    cfg = deepcopy(CONFIGS[name])  # upstream's DINO changes the config that it is built from
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    ours, theirs = (
        {
            parameter: (group['lr'], group['weight_decay'])
            for group in build_optim_wrapper(model, optim_wrapper).optimizer.param_groups
            for parameter in group['params']
        }
        for optim_wrapper in (cfg.optim_wrapper, get_config(upstream).optim_wrapper)
    )
    backbone = set(model.backbone.parameters())
    rest = ours.keys() - backbone
    assert len(rest) > 200
    assert {p: ours[p] for p in rest} == {p: theirs[p] for p in rest}
    lr, decay = (cfg.optim_wrapper.optimizer[option] for option in ('lr', 'weight_decay'))
    assert {ours[p] for p in backbone} == {(lr * 0.1, decay), (lr * 0.1, 0.0)}


def wrapped(dataset):
    """Yield a data set's config and, if it is a wrapper, those of the data sets in it."""
    yield dataset
    for inner in dataset.get('datasets', [dataset['dataset']] if 'dataset' in dataset else []):
        yield from wrapped(inner)


def types_of_parts(cfg):
    """Build, without data and weights, what a runner builds, and return the types of all of it."""
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    schedulers = cfg.get('param_scheduler', [])
    parts = [
        *model.modules(),
        optimizer,
        optimizer.optimizer,
        *(
            PARAM_SCHEDULERS.build(
                {k: v for k, v in scheduler.items() if k != 'convert_to_iter_based'},
                default_args=dict(optimizer=optimizer),
            )
            for scheduler in (schedulers if isinstance(schedulers, list) else [schedulers])
        ),
        VISUALIZERS.build(dict(cfg.visualizer, vis_backends=None)),
        *(HOOKS.build(hook) for hook in cfg.default_hooks.values()),
        *(VISBACKENDS.build(dict(backend, save_dir='.')) for backend in cfg.vis_backends),
    ]
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        for dataset in wrapped(loader.dataset):
            dataset.lazy_init = True
        parts.append(DATASETS.build(loader.dataset))
        for dataset in leaf_datasets(loader.dataset):
            parts.append(DATASETS.build(dataset))
            parts += parts[-1].pipeline.transforms
        parts.append(DATA_SAMPLERS.build(loader.sampler, default_args=dict(dataset=range(8))))
        if 'batch_sampler' in loader:
            sizes = dict(sampler=parts[-1], batch_size=2)
            parts.append(DATA_SAMPLERS.build(loader.batch_sampler, default_args=sizes))
    for split in ('val', 'test'):
        evaluator = cfg[f'{split}_evaluator']
        if 'ann_file' in evaluator:
            evaluator.ann_file = None
        parts += Evaluator(evaluator).metrics
    return [type(part) for part in parts]


@pytest.mark.parametrize('name', CONFIGS)
def test_one_line_inherits_by_name(name, tmp_path, monkeypatch):
    """mmengine writes the scope acmix_mm into such a config. All types are found in it."""
    warnings = []
    monkeypatch.setattr(
        mmengine.logging,
        'print_log',
        lambda message, logger=None, level=logging.INFO: (
            warnings.append(message) if level >= logging.WARNING else None
        ),
    )
    skip_without_library(CONFIGS[name])
    # Upstream's data set of VOC looks for its files even if it is to load nothing.
    monkeypatch.setattr('mmseg.datasets.voc.fileio', SimpleNamespace(exists=lambda *_: True))
    monkeypatch.setattr('mmseg.datasets.voc.osp', SimpleNamespace(isfile=lambda _: True))
    folder, _, file = name.removeprefix('configs/').rpartition('/')
    # mmengine takes only names that begin with a folder.
    base = f'{folder}/{file}' if folder else f'demo/../{file}'
    (tmp_path / 'config.py').write_text(f"_base_ = 'acmix_mm::{base}'")
    by_name = types_of_parts(Config.fromfile(tmp_path / 'config.py'))
    assert warnings == []
    assert by_name == types_of_parts(deepcopy(CONFIGS[name]))
