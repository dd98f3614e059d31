"""Two training steps and one prediction of a config's model, on random images."""

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData

HEIGHT, WIDTH = 96, 128
# Of each backbone, the smallest that has all its parts.
SMALL = dict(
    ACmixResNet=dict(depth=26),
    ACmixSAN=dict(depth=10),
    ACmixPVT=dict(num_layers=(1, 1, 1, 1)),
    ACmixSwin=dict(depths=(2, 2, 2, 2)),
)


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
    images = [torch.randint(256, (3, *size), dtype=torch.uint8) for _ in samples]
    return dict(inputs=images, data_samples=samples)


def num_classes_of(model):
    """The number of classes that the first head of a model config names."""
    found = [model[name] for name in ('num_classes', 'num_things_classes') if name in model]
    parts = [part for part in model.values() if isinstance(part, dict)]
    return next(iter(found + [n for n in map(num_classes_of, parts) if n]), None)


def train_and_predict(cfg: Config):
    """Build a config's model, but for the backbone's size, train two steps on a CPU, predict once.

    Two, since residual branches that start at 0 pass no gradient in the first.

    Returns:
        The trained model, its optimizer wrapper, the last losses and the predictions.
    """
    torch.manual_seed(0)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.update(init_cfg=None, **SMALL[cfg.model.backbone.type])
    if 'num_queries' in cfg.model:  # no more than there are pixels
        cfg.model.num_queries = 50
    # Both would pad the small images to those of real training.
    cfg.model.data_preprocessor.pop('batch_augments', None)
    if 'size' in cfg.model.data_preprocessor:
        cfg.model.data_preprocessor.size = (HEIGHT, WIDTH)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    make = dict(mmdet=detection_batch, mmseg=segmentation_batch)[cfg.default_scope]
    batch = make(num_classes_of(cfg.model))
    model.train()
    for _ in range(2):
        losses = model.train_step(batch, optimizer)
    with torch.no_grad():
        predictions = model.eval().test_step(batch)
    return model, optimizer, losses, predictions
