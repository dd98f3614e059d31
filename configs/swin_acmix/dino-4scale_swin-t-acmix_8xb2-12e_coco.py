# DINO, Swin-T-ACmix, 4 scales, 12 epochs of COCO.
#
#   python tools/train.py configs/swin_acmix/dino-4scale_swin-t-acmix_8xb2-12e_coco.py
_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    '../_base_/acmix.py',
    '../_base_/backbones/swin.py',
    '../_base_/schedules/slow_swin_tiny.py',
]

model = dict(
    backbone=dict(_delete_=True, out_indices=(1, 2, 3), **_base_.swin_tiny),
    neck=dict(in_channels=_base_.swin_channels[1:]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.slow_swin_tiny))
