# UPerNet, ResNet-50-ACmix with output stride 8, 160k iterations of ADE20K.
#
#   python tools/train.py configs/resnet_acmix/upernet_resnet50-acmix-d8_4xb4-160k_ade20k-512x512.py
#
# In the last two stages, dilation widens the windows of the attention and the shifts of the
# convolution.
_base_ = './upernet_resnet50-acmix_4xb4-160k_ade20k-512x512.py'

model = dict(backbone=dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True))
