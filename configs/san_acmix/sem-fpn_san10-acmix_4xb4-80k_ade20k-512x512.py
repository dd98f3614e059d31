# Semantic FPN, SAN-10-ACmix, 80k iterations of ADE20K.
#
#   python tools/train.py configs/san_acmix/sem-fpn_san10-acmix_4xb4-80k_ade20k-512x512.py
_base_ = [
    'mmseg::_base_/models/fpn_r50.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/schedules/schedule_80k.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/acmix.py',
    '../_base_/backbones/san.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(_base_.pop('san10'), _delete_=True),
    decode_head=dict(num_classes=150),
)
optim_wrapper = _base_.pop('no_decay')
