"""The tool that builds our backbones from the configs of other libraries."""

import runpy
from pathlib import Path

import pytest
from mmengine.hub import get_config

import acmix_mm  # noqa: F401  makes mmengine find the configs of mmseg

ROOT = Path(__file__).parents[2]
TOOL = runpy.run_path(str(ROOT / 'tools' / 'analysis' / 'upstream_configs.py'))
Result = TOOL['Result']


def examine(model: dict):
    return TOOL['examine']('a.py', model)


def test_backbones_are_found_at_any_depth():
    model = dict(
        backbone=dict(type='A'),
        detector=dict(backbone=dict(type='mmdet.B', neck=dict(backbone=dict(type='C')))),
        experts=[dict(backbone=dict(type='D')), dict(head=dict(backbone='none'))],
    )
    found = [TOOL['class_name'](cfg) for cfg in TOOL['find_backbones'](model)]
    assert found == ['A', 'B', 'C', 'D']


def test_result_names_the_class_and_the_reason():
    good = dict(type='mmdet.ResNet', depth=26, base_channels=8)
    assert examine(dict(backbone=good)) == Result('a.py', 'ResNet', None)
    bad = examine(dict(student=dict(backbone=good), teacher=dict(backbone=dict(good, depth=20))))
    assert bad.backbone == 'ResNet'
    assert bad.refusal.startswith('ACmixResNet: depth must be in')
    assert examine(dict(backbone=dict(type='ResNeXt', depth=50))) == Result('a.py', 'ResNeXt')
    assert examine(dict(type='RTDETR')) == Result('a.py', None)


@pytest.mark.parametrize(
    ('backbone', 'names'),
    [
        ('ResNet', {'conv1.weight', 'layer2.0.downsample.0.weight'}),
        ('ResNetV1c', {'stem.0.weight', 'layer2.0.downsample.0.weight'}),
        ('ResNetV1d', {'stem.0.weight', 'layer2.0.downsample.1.weight'}),
        ('SwinTransformer', {'patch_embed.projection.weight'}),
        ('PyramidVisionTransformer', {'stages.0.pos_embed'}),
        ('PyramidVisionTransformerV2', {'stages.3.norm.weight'}),
    ],
)
def test_replacements_are_of_the_same_variant(backbone, names):
    small = dict(depth=26, base_channels=8) if 'ResNet' in backbone else dict(embed_dims=12)
    network = TOOL['MODELS'].build(small | TOOL['REPLACEMENTS'][backbone])
    assert network.state_dict().keys() >= names


@pytest.mark.parametrize(
    ('name', 'backbone'),
    [
        ('mmdet::gcnet/mask-rcnn_r50-gcb-r4-c3-c5_fpn_1x_coco.py', 'ResNet'),
        ('mmdet::dcnv2/faster-rcnn_r50-mdconv-group4-c3-c5_fpn_1x_coco.py', 'ResNet'),
        ('mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py', 'ResNet'),
        ('mmdet::empirical_attention/faster-rcnn_r50-attn0010-dcn_fpn_1x_coco.py', 'ResNet'),
        ('mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py',
         'ResNet'),
        ('mmdet::qdtrack/qdtrack_faster-rcnn_r50_fpn_4e_base.py', 'ResNet'),
        ('mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py', 'SwinTransformer'),
        ('mmdet::pvt/retinanet_pvtv2-b0_fpn_1x_coco.py', 'PyramidVisionTransformerV2'),
        ('mmseg::deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py', 'ResNetV1c'),
        ('mmseg::dmnet/dmnet_r101-d8_4xb4-80k_ade20k-512x512.py', 'ResNetV1c'),
        ('mmseg::swin/swin-base-patch4-window12-in1k-384x384-pre_upernet_8xb2-160k_ade20k-512x512.py',
         'SwinTransformer'),
    ],
)  # fmt: skip
def test_configs_of_every_kind(name, backbone):
    pytest.importorskip(name.partition('::')[0])
    result = TOOL['examine'](name, get_config(name).model)
    assert result == Result(name, backbone, None)


def test_report():
    results = [
        Result('a.py', 'ResNet'),
        Result('b.py', 'ResNet', 'too deep'),
        Result('c.py', 'ResNeXt'),
        Result('d.py', None, 'cannot be read, KeyError'),
    ]
    *_, resnet, others, _, title, _, first, second = TOOL['report']({'mmdet': results}).splitlines()
    assert resnet.endswith('| ResNet | ACmixResNet | 1 of 2 |')
    assert others.endswith('| others |  | 2 |')
    assert title == 'Not replaced:'
    assert (first, second) == (
        '* `mmdet/b.py`: too deep',
        '* `mmdet/d.py`: cannot be read, KeyError',
    )
