# Turns a config for 12 epochs of COCO into one for 36 epochs at several scales. All backbones get
# the warm-up of the transformers, 1000 iterations.
#
# mmengine does not allow two bases of a config to set the same key, and the config for 12 epochs
# sets train_cfg, train_pipeline, train_dataloader and param_scheduler. So these are variables, and
# every config for 36 epochs has to take each of them with _base_.pop (see ../acmix.py).
train_cfg_3x = dict(max_epochs=36)
train_pipeline_ms = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomResize', scale=[(1333, 640), (1333, 800)], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
param_scheduler_3x = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', begin=0, end=36, by_epoch=True, milestones=[27, 33], gamma=0.1),
]
