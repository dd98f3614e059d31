"""A config of another OpenMMLab library with our backbone, where that library is installed."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData

import acmix_mm  # noqa: F401  registers the backbone

BACKBONE = dict(type='ACmixResNet', depth=26, base_channels=8, norm_eval=False)
CHANNELS = [32, 64, 128, 256]


def registry_of(library):
    """Import the registry and the models of a library, or skip the test and say why."""
    pytest.importorskip(f'{library}.models')
    return import_module(f'{library}.registry')


def rotated_detector():
    """Return a rotated RetinaNet on DOTA, and a batch for it."""
    registry = registry_of('mmrotate')
    structures = import_module('mmdet.structures')
    boxes = import_module('mmrotate.structures').RotatedBoxes
    options = {
        'neck.in_channels': CHANNELS, 'neck.out_channels': 16,
        'bbox_head.in_channels': 16, 'bbox_head.feat_channels': 16,
    }  # fmt: skip
    name = 'rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota'
    samples = []
    for label in (0, 14):
        sample = structures.DetDataSample(metainfo=dict(img_shape=(64, 96), scale_factor=(1, 1)))
        truth = boxes(torch.tensor([[40.0, 30.0, 24.0, 12.0, 0.5]]))
        sample.gt_instances = InstanceData(bboxes=truth, labels=torch.tensor([label]))
        samples.append(sample)
    return registry, name, options, samples


def pose_estimator():
    """Return a top-down estimator on COCO, and a batch for it."""
    registry = registry_of('mmpose')
    structures = import_module('mmpose.structures')
    samples = []
    for _ in range(2):
        meta = dict(img_shape=(64, 96), flip_indices=list(range(17)))
        meta |= dict(
            input_size=np.array([96, 64]),
            input_center=np.array([48, 32]),
            input_scale=np.array([96, 64]),
        )
        sample = structures.PoseDataSample(metainfo=meta)
        sample.gt_fields = PixelData(heatmaps=torch.rand(17, 16, 24))
        sample.gt_instance_labels = InstanceData(keypoint_weights=torch.ones(1, 17))
        sample.gt_instances = InstanceData(
            bboxes=np.array([[0.0, 0.0, 96.0, 64.0]]), bbox_scores=np.ones(1)
        )
        samples.append(sample)
    name = 'body_2d_keypoint/topdown_heatmap/coco/td-hm_res50_8xb64-210e_coco-256x192'
    options = {'head.in_channels': CHANNELS[-1], 'head.deconv_out_channels': (16, 16, 16)}
    return registry, name, options, samples


@pytest.mark.parametrize('prepare', [rotated_detector, pose_estimator])
def test_train_and_predict(prepare):
    registry, name, options, samples = prepare()
    library = registry.__name__.partition('.')[0]
    folder = Path(import_module(library).__path__[0]) / '.mim/configs'
    cfg = Config.fromfile(folder / f'{name}.py')
    cfg.model.backbone = BACKBONE
    cfg.merge_from_dict({f'model.{key}': value for key, value in options.items()})
    with DefaultScope.overwrite_default_scope(library):
        model = registry.MODELS.build(cfg.model)
        model.init_weights()
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
        images = [torch.randint(256, (3, 64, 96), dtype=torch.uint8) for _ in range(2)]
        batch = dict(inputs=images, data_samples=samples)
        losses = model.train().train_step(batch, optimizer)
        predictions = model.eval().test_step(batch)
    assert type(model.backbone).__module__ == 'acmix_mm.backbones.resnet'
    assert all(torch.isfinite(loss).all() for loss in losses.values())
    assert len(predictions) == 2
    states = optimizer.optimizer.state
    assert not [n for n, p in model.named_parameters() if p.requires_grad and not states.get(p)]
