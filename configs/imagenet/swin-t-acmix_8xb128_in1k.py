# Swin-T-ACmix, 300 epochs of ImageNet-1k.
#
#   python tools/train.py configs/imagenet/swin-t-acmix_8xb128_in1k.py
#
# Recipe of the authors' release, https://github.com/LeapLabTHU/ACmix, Swin-Transformer/, with the
# 1024 images a step of its README: Swin's.
_base_ = ['../_base_/imagenet/transformer.py', '../_base_/backbones/swin.py']

model = dict(
    backbone=dict(_delete_=True, **_base_.swin_tiny) | dict(out_indices=(3,), init_cfg=None),
    head=dict(in_channels=_base_.swin_channels[-1]),
)
optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
