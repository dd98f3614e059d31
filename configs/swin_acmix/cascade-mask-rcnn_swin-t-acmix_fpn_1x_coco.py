# Cascade Mask R-CNN, Swin-T-ACmix, FPN, 12 epochs of COCO.
#
#   python tools/train.py configs/swin_acmix/cascade-mask-rcnn_swin-t-acmix_fpn_1x_coco.py
#
# mmdet has no Swin of this kind: the heads are those of its Cascade Mask R-CNN, the optimizer and
# warm-up those of its Swins. Swin's release has other box heads (4 convolutions, SyncBN, GIoU).
_base_ = [
    'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/backbones/swin.py',
]

model = dict(
    backbone=dict(_delete_=True, **_base_.swin_tiny),
    neck=dict(in_channels=_base_.swin_channels),
)
