# What every ImageNet config shares.
_base_ = [
    'mmpretrain::_base_/models/resnet50.py',
    'mmpretrain::_base_/default_runtime.py',
    '../acmix.py',
]

data_root = 'data/imagenet'
label_smoothing = dict(_delete_=True, type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
model = dict(head=dict(loss=label_smoothing))
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
