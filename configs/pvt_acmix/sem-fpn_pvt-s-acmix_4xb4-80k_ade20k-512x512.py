# Semantic FPN, PVT-S-ACmix, 80k iterations of ADE20K.
#
#   python tools/train.py configs/pvt_acmix/sem-fpn_pvt-s-acmix_4xb4-80k_ade20k-512x512.py
_base_ = ['./sem-fpn_pvt-t-acmix_4xb4-80k_ade20k-512x512.py', '../_base_/backbones/pvt.py']

model = dict(backbone=_base_.pop('pvt').small)
