# Mask2Former, Swin-T-ACmix, 160k iterations of ADE20K.
#
#   python tools/train.py configs/swin_acmix/mask2former_swin-t-acmix_8xb2-160k_ade20k-512x512.py
_base_ = [
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    '../_base_/backbones/swin.py',
    '../_base_/schedules/slow_swin_tiny.py',
]

custom_imports = dict(imports=['mmdet.models', 'acmix_mm'])
model = dict(
    backbone=dict(_delete_=True, **_base_.swin_tiny) | dict(drop_path_rate=0.3),
    decode_head=dict(in_channels=_base_.swin_channels),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.slow_swin_tiny))
