# DINO, Swin-T-ACmix, 4 scales, 12 epochs of COCO.
#
#   python tools/train.py configs/swin_acmix/dino-4scale_swin-t-acmix_8xb2-12e_coco.py
_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    '../_base_/backbones/swin.py',
    '../_base_/schedules/slow_backbone.py',
]

custom_imports = dict(imports=['acmix_mm'])
model = dict(
    backbone=dict(_base_.pop('swin').tiny, _delete_=True, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[192, 384, 768]),
)
optim_wrapper = _base_.pop('slow_backbone')
