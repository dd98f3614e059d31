# RetinaNet, ResNet-50-ACmix, FPN, 12 epochs of COCO.
#
#   python tools/train.py configs/resnet_acmix/retinanet_resnet50-acmix_fpn_1x_coco.py
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/sgd_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/backbones/resnet.py',
]

model = dict(
    backbone=dict(_base_.pop('resnet50'), _delete_=True),
)
optim_wrapper = dict(optimizer=dict(lr=0.01))
