# UPerNet, Swin-T-ACmix, 80k iterations of Cityscapes.
#
#   python tools/train.py configs/swin_acmix/upernet_swin-t-acmix_4xb2-80k_cityscapes-512x1024.py
#
# mmseg has no UPerNet with Swin on Cityscapes. Optimizer and warm-up are those of its
# UPerNets with Swin on ADE20K.
_base_ = [
    'mmseg::_base_/models/upernet_swin.py',
    'mmseg::_base_/datasets/cityscapes.py',
    'mmseg::_base_/schedules/schedule_80k.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/acmix.py',
    '../_base_/backbones/swin.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 1024)),
    pretrained=None,
    backbone=dict(_base_.pop('swin').tiny, _delete_=True, drop_path_rate=0.3),
)
optim_wrapper = dict(
    _base_.pop('no_decay'),
    optimizer=dict(_delete_=True, type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=1500, end=80000, by_epoch=False),
]
