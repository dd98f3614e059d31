"""Run a training step and a prediction of a config's model on random images."""

from copy import deepcopy
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from torch import nn

HEIGHT, WIDTH = 64, 96
# The smallest size of each backbone that has all its parts, with options that give every part a
# gradient in the first step.
SMALL: dict[str, dict] = dict(
    ACmixResNet=dict(depth=26, zero_init_residual=False),
    ACmixSAN=dict(depth=10),
    ACmixPVT=dict(arch=None, num_layers=(1, 1, 1, 1), drop_path_rate=0.0),
    ACmixSwin=dict(arch=None, depths=(2, 2, 2, 2), drop_path_rate=0.0),
)
# Upper limits for options of necks and heads that only make a test slow when they are larger:
# numbers of equal layers, queries, proposals and points, and widths on which no other part depends.
LIMITS = dict(
    num_layers=2,
    channels=32,
    fc_out_channels=64,
    conv_out_channels=32,
    num=16,
    nms_pre=100,
    max_per_img=16,
    max_per_image=16,
    num_queries=50,
    num_points=64,
)

# Parameters without weight decay, in addition to vectors and scalars (norms, biases, alpha, beta).
NO_DECAY = ('fc_bias', 'relative_position_bias_table', 'pos_embed')


def detection_batch(num_classes):
    from mmdet.testing import demo_mm_inputs

    shapes = [[3, HEIGHT, WIDTH]] * 2
    return demo_mm_inputs(2, shapes, num_items=[3, 3], num_classes=num_classes, with_mask=True)


def segmentation_batch(num_classes):
    from mmseg.structures import SegDataSample

    size = (HEIGHT, WIDTH)
    samples = []
    for _ in range(2):
        truth = PixelData(data=torch.randint(num_classes, (1, *size)))
        meta = dict(img_shape=size, ori_shape=size)
        samples.append(SegDataSample(gt_sem_seg=truth, metainfo=meta))
    return dict(inputs=random_images(), data_samples=samples)


def classification_batch(num_classes):
    from mmpretrain.structures import DataSample

    samples = [DataSample().set_gt_label(label) for label in (0, num_classes - 1)]
    return dict(inputs=random_images(), data_samples=samples)


def random_images():
    return [torch.randint(256, (3, HEIGHT, WIDTH), dtype=torch.uint8) for _ in range(2)]


def num_classes_of(model):
    """Return the number of classes of the first head in a model config."""
    found = [model[name] for name in ('num_classes', 'num_things_classes') if name in model]
    parts = [part for part in model.values() if isinstance(part, dict)]
    return next(iter(found + [n for n in map(num_classes_of, parts) if n]), None)


def limit(part: Any) -> None:
    """Apply ``LIMITS`` to a part of a model config, in place."""
    if isinstance(part, dict):
        for name, value in part.items():
            if name in LIMITS and isinstance(value, int):
                part[name] = min(value, LIMITS[name])
            else:
                limit(value)
    elif isinstance(part, list | tuple):
        for inner in part:
            limit(inner)


def small_model(cfg: Config) -> dict:
    """Return the model config of a config, with all parts reduced to a size for tests."""
    model = deepcopy(cfg.model)
    backbone = model.pop('backbone')
    limit(model)
    model.backbone = backbone | dict(init_cfg=None, **SMALL[backbone.type])
    if 'data_preprocessor' not in model:  # mmengine's runner does the same
        model.data_preprocessor = deepcopy(cfg.data_preprocessor)
    # Both options would pad the small images to the size of real training images.
    model.data_preprocessor.pop('batch_augments', None)
    if 'size' in model.data_preprocessor:
        model.data_preprocessor.size = (HEIGHT, WIDTH)
    return model


def train_and_predict(cfg: Config):
    """Build a config's model at a small size, train it for one step on a CPU, and predict once.

    Returns:
        The trained model, its optimizer wrapper, the losses and the predictions.
    """
    torch.manual_seed(0)
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(small_model(cfg)))
    model.init_weights()
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    make = dict(mmdet=detection_batch, mmseg=segmentation_batch, mmpretrain=classification_batch)[
        cfg.default_scope
    ]
    batch = make(num_classes_of(cfg.model))
    losses = model.train().train_step(batch, optimizer)
    with torch.no_grad():
        predictions = model.eval().test_step(batch)
    return model, optimizer, losses, predictions


def check_weight_decay(module: nn.Module, optimizer: OptimWrapper) -> None:
    """Assert that only the weights of convolutions and matrix products have weight decay."""
    decays = {p: group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            no_decay = parameter.ndim == 1 or name.endswith(NO_DECAY)
            expected = 0 if no_decay else optimizer.optimizer.defaults['weight_decay']
            assert decays[parameter] == expected, name
