"""The tools take mmengine's pure Python configs, whose types are the classes themselves."""

from pathlib import Path

import pytest
from mmengine.config import Config

from acmix_mm.preflight.classes import numbers_of_classes
from acmix_mm.preflight.data_content import distinct_datasets
from acmix_mm.preflight.weights import pretrained_checkpoints
from acmix_mm.runtime.config import move_data_root

DATA = """
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, Resize
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import DefaultSampler

data_root = 'data/shapes/'
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        type=CocoDataset,
        data_root=data_root,
        metainfo=dict(classes=('disc', 'square', 'triangle', 'star')),
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        pipeline=[
            dict(type=LoadImageFromFile),
            dict(type=LoadAnnotations, with_bbox=True),
            dict(type=Resize, scale=(64, 64)),
            dict(type=PackDetInputs),
        ],
    ),
)
"""
PROJECT = """
from mmengine.config import read_base

with read_base():
    from .data import *

from mmdet.models import FPN, DetDataPreprocessor, FocalLoss, L1Loss, RetinaHead, RetinaNet
from mmdet.models.task_modules import (
    AnchorGenerator, DeltaXYWHBBoxCoder, MaxIoUAssigner, PseudoSampler
)
from mmengine.model import PretrainedInit
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop
from torch.optim import SGD

from acmix_mm.backbones import ACmixResNet

default_scope = 'mmdet'
model = dict(
    type=RetinaNet,
    data_preprocessor=dict(type=DetDataPreprocessor),
    backbone=dict(type=ACmixResNet, depth=26, base_channels=8, norm_eval=False),
    neck=dict(type=FPN, in_channels=[32, 64, 128, 256], out_channels=8, num_outs=4),
    bbox_head=dict(
        type=RetinaHead,
        num_classes=4,
        in_channels=8,
        feat_channels=8,
        stacked_convs=1,
        anchor_generator=dict(
            type=AnchorGenerator,
            octave_base_scale=4,
            scales_per_octave=1,
            ratios=[1.0],
            strides=[4, 8, 16, 32],
        ),
        bbox_coder=dict(type=DeltaXYWHBBoxCoder),
        loss_cls=dict(type=FocalLoss, use_sigmoid=True),
        loss_bbox=dict(type=L1Loss),
    ),
    train_cfg=dict(
        assigner=dict(type=MaxIoUAssigner, pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
        sampler=dict(type=PseudoSampler),
        allowed_border=-1,
        pos_weight=-1,
    ),
)
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.01))
start = dict(type=PretrainedInit, checkpoint='start.pth')
"""


@pytest.fixture
def project(tmp_path) -> Path:
    (tmp_path / 'data.py').write_text(DATA)
    (tmp_path / 'project.py').write_text(PROJECT)
    return tmp_path / 'project.py'


def test_two_iterations(tool, project, shapes, tmp_path):
    root = f'data_root={shapes}'
    runner = tool('train.py').main(
        [str(project), '--work-dir', str(tmp_path / 'run'), '--cfg-options', root]
    )
    assert runner.iter == 2
    assert type(runner.model.backbone).__name__ == 'ACmixResNet'
    assert (tmp_path / 'run/epoch_1.pth').is_file()
    tool('dataset/check.py').main([str(project), '--cfg-options', root])


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        (
            ['data_root=nowhere'],
            r'nowhere/annotations/instances_val\.json .*train_dataloader, ann_f',
        ),
        (['model.bbox_head.num_classes=80'], 'num_classes is 80, but the CocoDataset of train_dat'),
        (
            ['model.backbone.init_cfg.type=Pretrained', 'model.backbone.init_cfg.checkpoint=a.pth'],
            'The checkpoint a.pth cannot be loaded',
        ),
    ],
)
def test_what_is_missing_or_does_not_fit_is_refused(
    tool, project, shapes, tmp_path, monkeypatch, options, says
):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/shapes').symlink_to(shapes)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=says):
        tool('train.py').main([str(project), '--cfg-options', *options])


@pytest.mark.parametrize('moved', [False, True])
def test_classes_are_known_by_their_names(project, moved):
    """Moving the data turns classes into texts such as ``'mmdet.datasets.CocoDataset'``."""
    cfg = Config.fromfile(project)
    cfg = move_data_root(cfg, 'elsewhere') if moved else cfg
    assert isinstance(cfg.train_dataloader.dataset.type, str) == moved
    folder = 'elsewhere' if moved else 'data/shapes'
    assert list(distinct_datasets(cfg, 'train')) == [
        f'train_dataloader, CocoDataset: {folder}/annotations/instances_val.json, {folder}/val/'
    ]
    assert numbers_of_classes(cfg.model) == {'model.bbox_head.num_classes': 4}
    assert list(pretrained_checkpoints(cfg.start)) == ['start.pth']
