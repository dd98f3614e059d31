# Semantic FPN with a narrow ResNet-26-ACmix on generated shapes, in minutes on a CPU.
#
#   python tools/dataset/make_shapes.py
#   python tools/train.py configs/demo/sem-fpn_resnet26-acmix_shapes.py
_base_ = [
    'mmseg::_base_/models/fpn_r50.py',
    '../_base_/datasets/shapes_semantic.py',
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_40k.py',
    '../_base_/acmix.py',
]
channels = 32
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    pretrained=None,
    backbone=dict(_delete_=True, type='ACmixResNet', depth=26, base_channels=16, norm_eval=False),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=channels),
    decode_head=dict(
        in_channels=[channels] * 4, channels=channels, num_classes=5, norm_cfg=norm_cfg
    ),
)

max_iters = 300
train_cfg = dict(max_iters=max_iters, val_interval=100)
optim_wrapper = dict(
    _base_.pop('no_decay'),
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-3, weight_decay=0.05),
)
param_scheduler = [dict(type='CosineAnnealingLR', T_max=max_iters, by_epoch=False)]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=100, max_keep_ckpts=2))
randomness = dict(seed=0)
del channels, max_iters  # otherwise mmengine keeps them as keys of the config
