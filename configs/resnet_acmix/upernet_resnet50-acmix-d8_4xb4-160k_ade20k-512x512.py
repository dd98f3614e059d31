# UPerNet, ResNet-50-ACmix of output stride 8, 160k iterations of ADE20K.
#
#   python tools/train.py configs/resnet_acmix/upernet_resnet50-acmix-d8_4xb4-160k_ade20k-512x512.py
#
# Dilation spreads the windows and shifts of the last two stages.
_base_ = './upernet_resnet50-acmix_4xb4-160k_ade20k-512x512.py'

model = dict(backbone=dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True))
