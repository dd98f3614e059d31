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

# RetinaNet leaves out the first output, whose norm would be without a gradient: DDP ends over that.
model = dict(
    backbone=dict(_delete_=True, out_indices=(1, 2, 3), **_base_.swin_tiny),
    neck=dict(in_channels=_base_.swin_channels[1:], start_level=0),
)
