# Mask2Former, Swin-T-ACmix, 50 epochs of COCO with large scale jitter.
#
#   python tools/train.py configs/swin_acmix/mask2former_swin-t-acmix_8xb2-lsj-50e_coco.py
_base_ = [
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    '../_base_/backbones/swin.py',
    '../_base_/schedules/slow_backbone.py',
]

custom_imports = dict(imports=['acmix_mm'])
model = dict(
    backbone=dict(_base_.pop('swin').tiny, _delete_=True, drop_path_rate=0.3),
    panoptic_head=dict(in_channels=[96, 192, 384, 768]),
)
# mmdet's config inherits the folders of panoptic maps from its base, but does not read them.
train_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img='train2017/')))
val_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img='val2017/')))
test_dataloader = val_dataloader
optim_wrapper = _base_.pop('slow_backbone')
