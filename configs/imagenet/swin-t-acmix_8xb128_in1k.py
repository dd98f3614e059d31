# Swin-T-ACmix, 300 epochs of ImageNet-1k.
#
#   python tools/train.py configs/imagenet/swin-t-acmix_8xb128_in1k.py
#
# The recipe of the authors' release (https://github.com/LeapLabTHU/ACmix, Swin-Transformer/), with
# 1024 images per step as in its README. It is the recipe of Swin.
_base_ = '../_base_/imagenet/transformer.py'

model = dict(
    backbone=dict(
        _delete_=True, type='ACmixSwin', arch='tiny', out_indices=(3,), drop_path_rate=0.2
    ),
    head=dict(in_channels=768),
)
optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
