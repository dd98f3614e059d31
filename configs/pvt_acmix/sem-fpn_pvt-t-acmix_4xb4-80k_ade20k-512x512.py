# Semantic FPN, PVT-T-ACmix, 80k iterations of ADE20K.
#
#   python tools/train.py configs/pvt_acmix/sem-fpn_pvt-t-acmix_4xb4-80k_ade20k-512x512.py
#
# The optimizer and schedule of PVT's release, with half its batch and learning rate.
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
    backbone=dict(_base_.pop('pvt').tiny, _delete_=True),
    neck=dict(in_channels=[64, 128, 320, 512]),
    decode_head=dict(num_classes=150),
)
optim_wrapper = dict(
    _base_.pop('no_decay'),
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4),
)
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=80000, by_epoch=False)]
