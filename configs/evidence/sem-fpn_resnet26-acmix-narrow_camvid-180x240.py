# Semantic FPN with a narrow ResNet-26-ACmix on CamVid, from random weights, minutes on a CPU core.
#
#   python tools/train.py configs/evidence/sem-fpn_resnet26-acmix-narrow_camvid-180x240.py
#
# tools/analysis/compare_paths.py trains its variants: other path weights, plain convolutions.
_base_ = [
    'mmseg::_base_/models/fpn_r50.py',
    '../_base_/datasets/camvid.py',
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_40k.py',
    '../_base_/acmix.py',
]

channels = 32
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(160, 208), test_cfg=dict(size_divisor=1)),
    pretrained=None,
    backbone=dict(_delete_=True, type='ACmixResNet', depth=26, base_channels=16, norm_eval=False),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=channels),
    decode_head=dict(
        in_channels=[channels] * 4,
        channels=channels,
        num_classes=11,
        norm_cfg=norm_cfg,
        loss_decode=dict(
            type='CrossEntropyLoss',
            # About the inverse root of the frequency: otherwise the rare classes are not learned.
            class_weight=[0.88, 0.75, 3.68, 0.64, 1.72, 1.16, 3.35, 3.5, 1.49, 4.75, 6.7],
        ),
    ),
)

max_iters = 1500
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    _base_.pop('no_decay'),
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-3, weight_decay=0.05),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=max_iters, by_epoch=False, eta_min=0),
]
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=500, max_keep_ckpts=2))
randomness = dict(seed=0)
del channels, max_iters  # otherwise mmengine keeps them as keys of the config
