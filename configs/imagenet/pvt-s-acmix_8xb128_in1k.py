# PVT-S-ACmix, 300 epochs of ImageNet-1k.
#
#   python tools/train.py configs/imagenet/pvt-s-acmix_8xb128_in1k.py
_base_ = './pvt-t-acmix_8xb128_in1k.py'

model = dict(backbone=dict(arch='small'))
