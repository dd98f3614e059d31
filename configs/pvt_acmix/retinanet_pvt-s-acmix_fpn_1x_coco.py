# RetinaNet, PVT-S-ACmix, FPN, 12 epochs of COCO.
#
#   python tools/train.py configs/pvt_acmix/retinanet_pvt-s-acmix_fpn_1x_coco.py
_base_ = ['./retinanet_pvt-t-acmix_fpn_1x_coco.py', '../_base_/backbones/pvt.py']

model = dict(backbone=_base_.pop('pvt').small)
