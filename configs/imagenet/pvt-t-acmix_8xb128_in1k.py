# PVT-T-ACmix, 300 epochs of ImageNet-1k.
#
#   python tools/train.py configs/imagenet/pvt-t-acmix_8xb128_in1k.py
#
# The recipe of PVT's release (https://github.com/whai362/PVT, classification/main.py), which is
# DeiT's. The class token and the last norm of PVT are left out, as in docs/model_zoo.md.
_base_ = '../_base_/imagenet/transformer.py'

model = dict(
    backbone=dict(
        _delete_=True, type='ACmixPVT', arch='tiny', out_indices=(3,), drop_path_rate=0.1
    ),
    head=dict(in_channels=512),
)
train_dataloader = dict(sampler=dict(type='RepeatAugSampler'))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, begin=5, end=300),
]
