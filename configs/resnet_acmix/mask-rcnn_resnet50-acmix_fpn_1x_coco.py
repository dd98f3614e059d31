# Mask R-CNN, ResNet-50-ACmix, FPN, 12 epochs of COCO.
#
#   python tools/train.py configs/resnet_acmix/mask-rcnn_resnet50-acmix_fpn_1x_coco.py
#
# No ImageNet weights of ResNet-ACmix were released. The plain ResNet-50 of torchvision gives its
# stem, 1x1 convolutions and norms; the ACmix layers start from nothing. So the stem alone is
# frozen, and the norms are trained and synchronised.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/acmix.py',
]

model = dict(
    backbone=dict(
        type='ACmixResNet',
        frozen_stages=0,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        norm_eval=False,
        init_cfg=dict(checkpoint='https://download.pytorch.org/models/resnet50-0676ba61.pth'),
    )
)
optim_wrapper = dict(paramwise_cfg={{_base_.paramwise_cfg}})
