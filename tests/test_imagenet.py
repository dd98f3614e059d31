"""The ImageNet recipes, as far as they go without mmpretrain, and the use of their checkpoints.

The models that they describe take a step in test_configs.py where mmpretrain can be imported.
"""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from steps import SMALL, check_weight_decay
from torch import nn
from versions import needs_mmpretrain

import acmix_mm  # noqa: F401  registers the backbones
from acmix_mm.preflight.libraries import check_scope

pytestmark = needs_mmpretrain

CONFIGS = Path(__file__).parents[1] / 'configs'
RECIPES = [
    # config, optimizer, learning rate, weight decay, images per step, epochs, warm-up, drop path
    ('resnet50-acmix_8xb16', 'SGD', 0.1, 1e-4, 128, 90, 5, 0.0),
    ('san10-acmix_8xb32', 'SGD', 0.1, 1e-4, 256, 100, 0, 0.0),
    ('pvt-t-acmix_8xb128', 'AdamW', 1e-3, 0.05, 1024, 300, 5, 0.1),
    ('swin-t-acmix_8xb128', 'AdamW', 1e-3, 0.05, 1024, 300, 20, 0.2),
    ('swin-s-acmix_8xb128', 'AdamW', 1e-3, 0.05, 1024, 300, 20, 0.3),
]
# For each family, the recipe and a config that can start from its checkpoint.
HANDED_ON = {
    'resnet50-acmix_8xb16': 'resnet_acmix/mask-rcnn_resnet50-acmix_fpn_1x_coco.py',
    'resnet26-acmix_8xb16': 'resnet_acmix/retinanet_resnet26-acmix_fpn_1x_coco.py',
    'san10-acmix_8xb32': 'san_acmix/sem-fpn_san10-acmix_8xb4-40k_ade20k-512x512.py',
    'pvt-t-acmix_8xb128': 'pvt_acmix/retinanet_pvt-t-acmix_fpn_1x_coco.py',
    'swin-t-acmix_8xb128': 'swin_acmix/upernet_swin-t-acmix_8xb2-160k_ade20k-512x512.py',
}


def recipe(name):
    return Config.fromfile(CONFIGS / 'imagenet' / f'{name}_in1k.py')


@pytest.mark.parametrize(
    ('name', 'optimizer', 'lr', 'decay', 'images', 'epochs', 'warm_up', 'drop_path'), RECIPES
)
def test_recipe(name, optimizer, lr, decay, images, epochs, warm_up, drop_path):
    cfg = recipe(name)
    found = cfg.optim_wrapper.optimizer
    assert (found.type, found.lr, found.weight_decay) == (optimizer, lr, decay)
    assert cfg.auto_scale_lr.base_batch_size == images
    assert cfg.train_cfg.max_epochs == epochs
    schedule = cfg.param_scheduler
    *warm_ups, cosine = schedule if isinstance(schedule, list) else [schedule]
    assert sum(part.end for part in warm_ups) == warm_up == cosine.get('begin', 0)
    assert cosine.type == 'CosineAnnealingLR'
    assert cosine.get('end', epochs) == epochs
    assert cfg.model.backbone.get('drop_path_rate', 0.0) == drop_path
    assert cfg.model.head.loss.label_smooth_val == 0.1
    # The weights are random at first, and the norms are trained.
    assert cfg.model.backbone.get('init_cfg') is None
    assert cfg.model.backbone.get('norm_eval', False) is False


@pytest.mark.parametrize('name', [name for name, *_ in RECIPES])
def test_weight_decay(name):
    cfg = recipe(name)
    model = nn.Module()
    with torch.device('meta'):
        model.backbone = MODELS.build(cfg.model.backbone | SMALL[cfg.model.backbone.type])
    cfg.optim_wrapper.optimizer.pop('_scope_')  # which would import mmpretrain
    check_weight_decay(model.backbone, build_optim_wrapper(model, cfg.optim_wrapper))


@pytest.mark.parametrize(('name', 'other'), HANDED_ON.items())
def test_checkpoint_of_a_classifier_is_taken_as_it_is(tmp_path, name, other):
    cfg = recipe(name).model.backbone
    backbone = MODELS.build(cfg | SMALL[cfg.type])
    classifier = nn.ModuleDict(dict(backbone=backbone, head=nn.Linear(2, 2)))
    for tensor in classifier.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_()
    file = tmp_path / 'epoch_300.pth'
    torch.save(dict(state_dict=classifier.state_dict(), meta=dict(epoch=300)), file)

    detector = Config.fromfile(CONFIGS / other)
    start = dict(type='Pretrained', checkpoint=str(file))  # as --cfg-options sets it
    detector.merge_from_dict({f'model.backbone.init_cfg.{k}': v for k, v in start.items()})
    backbone = MODELS.build(detector.model.backbone | SMALL[detector.model.backbone.type])
    backbone.init_weights()
    loaded = backbone.state_dict()
    for entry, tensor in classifier.backbone.state_dict().items():
        assert torch.equal(loaded[entry], tensor), entry
    # Only the norms of outputs that a classifier doesn't have are left as they were.
    others = loaded.keys() - classifier.backbone.state_dict().keys()
    assert all(entry.startswith('norm') for entry in others)


def test_training_says_what_is_missing(tool):
    try:
        check_scope('mmpretrain')
        missing = '/nowhere/train'
    except ImportError:
        missing = r'mmpretrain cannot be imported .* torchvision that is built for your torch'
    config = str(CONFIGS / 'imagenet/resnet50-acmix_8xb16_in1k.py')
    with pytest.raises(SystemExit, match=missing):
        tool('train.py').main([config, '--cfg-options', 'data_root=/nowhere'])


def test_predictions_are_kept_and_drawn(tool):
    test = tool('test.py')
    cfg = recipe('resnet50-acmix_8xb16')
    test.keep_predictions(cfg, 'predictions.pkl')
    assert [evaluator.type for evaluator in cfg.test_evaluator] == ['Accuracy', 'DumpResults']
    test.draw_predictions(cfg, test.parse_args(['config', 'checkpoint', '--show-dir', 'pictures']))
    hook = cfg.default_hooks.visualization
    assert (hook.enable, hook.interval, hook.out_dir, hook.show) == (True, 1, 'pictures', False)
