# Semantic FPN, PVT-T-ACmix, 80k iterations of ADE20K.
#
#   python tools/train.py configs/pvt_acmix/sem-fpn_pvt-t-acmix_4xb4-80k_ade20k-512x512.py
#
# Optimizer and schedule of PVT's release, at half its batch and learning rate.
_base_ = [
    'mmseg::_base_/models/fpn_r50.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/schedules/schedule_80k.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/acmix.py',
    '../_base_/backbones/pvt.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(_delete_=True, **_base_.pvt_tiny),
    neck=dict(in_channels=_base_.pvt_channels),
    decode_head=dict(num_classes=150),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4),
    paramwise_cfg=_base_.paramwise_cfg,
)
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=80000, by_epoch=False)]
