# 300 epochs of ImageNet with AdamW, for PVT and Swin.
#
# Augmentation, optimizer and schedule are those of Swin in mmpretrain, which are based on DeiT's.
_base_ = [
    './classifier.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
]

model = dict(
    head=dict(init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02)),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
train_dataloader = dict(batch_size=128)
optim_wrapper = _base_.pop('no_decay')
