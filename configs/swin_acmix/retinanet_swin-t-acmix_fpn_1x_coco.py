# RetinaNet, Swin-T-ACmix, FPN, 12 epochs of COCO.
#
#   python tools/train.py configs/swin_acmix/retinanet_swin-t-acmix_fpn_1x_coco.py
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/adamw_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/backbones/swin.py',
]

# mmdet's RetinaNet does not use the first output (start_level=1). The norm of that output would get
# no gradient, which is an error in DDP, so the backbone does not return it.
model = dict(
    backbone=dict(_base_.pop('swin').tiny, _delete_=True, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[192, 384, 768], start_level=0),
)
