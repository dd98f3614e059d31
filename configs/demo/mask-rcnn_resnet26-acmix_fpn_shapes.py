# Mask R-CNN with a narrow ResNet-26-ACmix on generated shapes, in minutes on two CPU cores.
#
#   make demo
# or, step by step,
#   python tools/dataset/make_shapes.py
#   python tools/train.py configs/demo/mask-rcnn_resnet26-acmix_fpn_shapes.py
_base_ = [
    '../_base_/models/mask-rcnn_resnet26-acmix_narrow.py',
    '../_base_/datasets/shapes_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/acmix.py',
]

# Shapes are about as wide as high, so one anchor ratio is enough, and none is large.
model = dict(
    neck=dict(num_outs=4),
    rpn_head=dict(anchor_generator=dict(scales=[6], ratios=[1.0], strides=[4, 8, 16, 32])),
    roi_head=dict(bbox_head=dict(num_classes=4), mask_head=dict(num_classes=4)),
)

max_epochs = 20
train_cfg = dict(max_epochs=max_epochs, val_interval=5)
optim_wrapper = dict(
    _base_.pop('no_decay'),
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-3, weight_decay=0.05),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=max_epochs, convert_to_iter_based=True, eta_min=1e-5),
]
train_dataloader = dict(num_workers=1)
val_dataloader = dict(num_workers=1)
test_dataloader = val_dataloader
default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(max_keep_ckpts=2),
    visualization=dict(score_thr=0.5),
)
auto_scale_lr = dict(base_batch_size=8)
randomness = dict(seed=0)
del max_epochs  # otherwise mmengine keeps it as a key of the config
