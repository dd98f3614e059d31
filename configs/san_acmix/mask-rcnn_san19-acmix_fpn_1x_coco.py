# Mask R-CNN, SAN-19-ACmix, FPN, 12 epochs of COCO.
#
#   python tools/train.py configs/san_acmix/mask-rcnn_san19-acmix_fpn_1x_coco.py
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/sgd_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/backbones/san.py',
]

model = dict(
    backbone=dict(_base_.pop('san10'), _delete_=True, depth=19),
)
