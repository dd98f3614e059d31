# Mask R-CNN, PVT-T-ACmix, FPN, 12 epochs of COCO.
#
#   python tools/train.py configs/pvt_acmix/mask-rcnn_pvt-t-acmix_fpn_1x_coco.py
#
# Learning rate and weight decay are those of PVT's release.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/backbones/pvt.py',
]

model = dict(
    backbone=dict(_base_.pop('pvt').tiny, _delete_=True),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=1e-4))
