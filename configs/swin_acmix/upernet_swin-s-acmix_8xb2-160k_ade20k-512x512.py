# UPerNet, Swin-S-ACmix, 160k iterations of ADE20K.
#
#   python tools/train.py configs/swin_acmix/upernet_swin-s-acmix_8xb2-160k_ade20k-512x512.py
_base_ = ['./upernet_swin-t-acmix_8xb2-160k_ade20k-512x512.py', '../_base_/backbones/swin.py']

model = dict(backbone=dict(_base_.pop('swin').small, drop_path_rate=0.3))
