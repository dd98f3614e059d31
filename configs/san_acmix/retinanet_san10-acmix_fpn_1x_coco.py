# RetinaNet, SAN-10-ACmix, FPN, 12 epochs of COCO.
#
#   python tools/train.py configs/san_acmix/retinanet_san10-acmix_fpn_1x_coco.py
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/sgd_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/backbones/san.py',
]

model = dict(
    backbone=dict(_base_.pop('san10'), _delete_=True),
)
optim_wrapper = dict(optimizer=dict(lr=0.01))
