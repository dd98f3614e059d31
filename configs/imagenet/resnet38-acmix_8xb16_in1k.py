# ResNet-38-ACmix, 90 epochs of ImageNet-1k.
#
#   python tools/train.py configs/imagenet/resnet38-acmix_8xb16_in1k.py
_base_ = './resnet50-acmix_8xb16_in1k.py'

model = dict(backbone=dict(depth=38))
