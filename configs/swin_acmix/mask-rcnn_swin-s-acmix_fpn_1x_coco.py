# Mask R-CNN, Swin-S-ACmix, FPN, 12 epochs of COCO.
#
#   python tools/train.py configs/swin_acmix/mask-rcnn_swin-s-acmix_fpn_1x_coco.py
_base_ = ['./mask-rcnn_swin-t-acmix_fpn_1x_coco.py', '../_base_/backbones/swin.py']

model = dict(backbone=_base_.pop('swin').small)
