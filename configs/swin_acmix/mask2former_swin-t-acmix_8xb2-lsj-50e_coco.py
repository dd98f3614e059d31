# Mask2Former, Swin-T-ACmix, 50 epochs of COCO with large scale jitter.
#
#   python tools/train.py configs/swin_acmix/mask2former_swin-t-acmix_8xb2-lsj-50e_coco.py
_base_ = [
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    '../_base_/acmix.py',
    '../_base_/backbones/swin.py',
    '../_base_/schedules/slow_swin_tiny.py',
]

model = dict(
    backbone=dict(_delete_=True, **_base_.swin_tiny) | dict(drop_path_rate=0.3),
    panoptic_head=dict(in_channels=_base_.swin_channels),
)
# Upstream's has the folders of panoptic maps left over from its base, and reads none of them.
train_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img='train2017/')))
val_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img='val2017/')))
test_dataloader = val_dataloader
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.slow_swin_tiny))
