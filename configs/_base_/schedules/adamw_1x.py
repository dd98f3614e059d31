# 12 epochs of COCO with AdamW, for PVT and Swin.
#
# Learning rate, weight decay and warm-up are those of Swin in mmdet.
_base_ = ['mmdet::_base_/schedules/schedule_1x.py', '../acmix.py']

optim_wrapper = dict(
    _base_.pop('no_decay'),
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
