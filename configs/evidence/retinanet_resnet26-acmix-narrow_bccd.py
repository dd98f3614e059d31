# RetinaNet with a narrow ResNet-26-ACmix on BCCD, from random weights, in minutes on a CPU core.
#
#   python tools/train.py configs/evidence/retinanet_resnet26-acmix-narrow_bccd.py
#
# tools/analysis/compare_paths.py trains its variants: other path weights, plain convolutions.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/datasets/bccd.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/acmix.py',
]

channels = 32
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    backbone=dict(_delete_=True, type='ACmixResNet', depth=26, base_channels=16, norm_eval=False),
    neck=dict(
        in_channels=[64, 128, 256, 512],
        out_channels=channels,
        add_extra_convs='on_output',
        num_outs=4,
        norm_cfg=norm_cfg,
    ),
    bbox_head=dict(
        type='RetinaSepBNHead',
        num_ins=4,
        num_classes=3,
        in_channels=channels,
        feat_channels=channels,
        stacked_convs=2,
        norm_cfg=norm_cfg,
        anchor_generator=dict(
            octave_base_scale=3,
            scales_per_octave=2,
            ratios=[0.75, 1.0, 1.333],
            strides=[8, 16, 32, 64],
        ),
    ),
    test_cfg=dict(nms_pre=300, max_per_img=60),
)

max_iters = 450
train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters
)
optim_wrapper = dict(
    _base_.pop('no_decay'),
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10.0),
)
# The branches of the head share their convolutions.
optim_wrapper['paramwise_cfg'] = dict(optim_wrapper['paramwise_cfg'], bypass_duplicate=True)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=max_iters, by_epoch=False, eta_min=0),
]
default_hooks = dict(
    logger=dict(interval=50), checkpoint=dict(by_epoch=False, interval=150, max_keep_ckpts=2)
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
del channels, norm_cfg, max_iters  # otherwise mmengine keeps them as keys of the config
