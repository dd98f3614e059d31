# Mask R-CNN, Swin-T-ACmix, FPN, 12 epochs of COCO.
#
#   python tools/train.py configs/swin_acmix/mask-rcnn_swin-t-acmix_fpn_1x_coco.py
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/backbones/swin.py',
]

model = dict(
    backbone=dict(_base_.pop('swin').tiny, _delete_=True),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
