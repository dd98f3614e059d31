# 12 epochs of COCO with AdamW, for the transformers.
#
# Learning rate, decay and warm-up of mmdet's Swin.
_base_ = ['mmdet::_base_/schedules/schedule_1x.py', '../acmix.py']

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=_base_.paramwise_cfg,
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
