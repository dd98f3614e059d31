# SAN-15-ACmix, 100 epochs of ImageNet-1k.
#
#   python tools/train.py configs/imagenet/san15-acmix_8xb32_in1k.py
_base_ = './san10-acmix_8xb32_in1k.py'

model = dict(backbone=dict(depth=15))
