# Settings that all ImageNet configs share.
_base_ = [
    'mmpretrain::_base_/models/resnet50.py',
    'mmpretrain::_base_/default_runtime.py',
    '../acmix.py',
]

data_root = 'data/imagenet'
model = dict(
    head=dict(
        loss=dict(_delete_=True, type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
    )
)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
