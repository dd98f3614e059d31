# Mask2Former, Swin-T-ACmix, 160k iterations of ADE20K.
#
#   python tools/train.py configs/swin_acmix/mask2former_swin-t-acmix_8xb2-160k_ade20k-512x512.py
_base_ = [
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    '../_base_/backbones/swin.py',
    '../_base_/schedules/slow_backbone.py',
]

# Mask2Former of mmseg takes its heads from mmdet.
custom_imports = dict(imports=['mmdet.models', 'acmix_mm'])
model = dict(
    backbone=dict(_base_.pop('swin').tiny, _delete_=True, drop_path_rate=0.3),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = _base_.pop('slow_backbone')
