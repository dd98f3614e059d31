# Swin-S-ACmix, 300 epochs of ImageNet-1k.
#
#   python tools/train.py configs/imagenet/swin-s-acmix_8xb128_in1k.py
_base_ = './swin-t-acmix_8xb128_in1k.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.3))
