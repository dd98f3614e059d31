"""Every config is parsed; every pairing of backbone and heads in them is built and takes steps."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from steps import train_and_predict

import acmix_mm  # noqa: F401  makes mmengine find the configs of mmseg

ROOT = Path(__file__).parents[1]
CONFIGS = {
    str(path.relative_to(ROOT)): Config.fromfile(path)
    for path in sorted((ROOT / 'configs').rglob('*.py'))
    if '_base_' not in path.parts
}
# Configs with equal models, such as those of other schedules, share one name here: the last.
PAIRINGS = {str(cfg.model): name for name, cfg in CONFIGS.items()}.values()


def test_all_configs_are_found():
    assert len(CONFIGS) == 5
    assert len(PAIRINGS) == 4


@pytest.mark.parametrize('name', CONFIGS)
def test_config(name):
    assert f'python tools/train.py {name}' in (ROOT / name).read_text()
    cfg = CONFIGS[name]
    assert cfg.custom_imports.imports == ['acmix_mm']
    assert cfg.default_scope in ('mmdet', 'mmseg')
    assert cfg.model.backbone.type.startswith('ACmix')


def test_the_front_door_is_the_coco_config():
    def contents(name):
        return {key: value for key, value in CONFIGS[name].items() if key != 'filename'}

    coco = 'configs/resnet_acmix/mask-rcnn_resnet50-acmix_fpn_1x_coco.py'
    assert contents('configs/mask_rcnn_acmix.py') == contents(coco)


@pytest.mark.parametrize('name', PAIRINGS)
def test_train_and_predict(name):
    model, optimizer, losses, predictions = train_and_predict(CONFIGS[name].copy())
    assert len(losses) > 1
    assert all(torch.isfinite(loss).all() for loss in losses.values())
    assert len(predictions) == 2
    alphas = {
        parameter
        for name, parameter in model.named_parameters()
        if name.endswith(('mix.alpha', 'mix.beta'))
    }
    assert any(alpha != 0.5 for alpha in alphas), 'the paths are weighed by learning'
    for group in optimizer.param_groups:
        if alphas.intersection(group['params']):
            assert group['weight_decay'] == 0
