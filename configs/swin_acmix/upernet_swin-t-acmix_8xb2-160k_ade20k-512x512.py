# UPerNet, Swin-T-ACmix, 160k iterations of ADE20K.
#
#   python tools/train.py configs/swin_acmix/upernet_swin-t-acmix_8xb2-160k_ade20k-512x512.py
_base_ = [
    'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
    '../_base_/acmix.py',
    '../_base_/backbones/swin.py',
]

model = dict(backbone=dict(_base_.pop('swin').tiny, _delete_=True, drop_path_rate=0.3))
optim_wrapper = _base_.pop('no_decay')
