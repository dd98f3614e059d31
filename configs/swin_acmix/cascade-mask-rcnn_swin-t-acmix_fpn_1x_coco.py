# Cascade Mask R-CNN, Swin-T-ACmix, FPN, 12 epochs of COCO.
#
#   python tools/train.py configs/swin_acmix/cascade-mask-rcnn_swin-t-acmix_fpn_1x_coco.py
#
# mmdet has no Cascade Mask R-CNN with Swin. The heads are those of its Cascade Mask R-CNN with
# ResNet, and the optimizer and warm-up those of its Mask R-CNN with Swin. Swin's release has other
# box heads (4 convolutions, SyncBN, GIoU).
_base_ = [
    'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/backbones/swin.py',
]

model = dict(
    backbone=dict(_base_.pop('swin').tiny, _delete_=True),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
