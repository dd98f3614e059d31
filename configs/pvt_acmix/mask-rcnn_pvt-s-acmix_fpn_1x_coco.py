# Mask R-CNN, PVT-S-ACmix, FPN, 12 epochs of COCO.
#
#   python tools/train.py configs/pvt_acmix/mask-rcnn_pvt-s-acmix_fpn_1x_coco.py
_base_ = ['./mask-rcnn_pvt-t-acmix_fpn_1x_coco.py', '../_base_/backbones/pvt.py']

model = dict(backbone=_base_.pop('pvt').small)
