# ResNet-50-ACmix, 90 epochs of ImageNet-1k.
#
#   python tools/train.py configs/imagenet/resnet50-acmix_8xb16_in1k.py
#
# The recipe of the authors' release (https://github.com/LeapLabTHU/ACmix, ResNet/main.py), with 128
# images per step as in its README. In the release all parameters decay; here, those that
# _base_/acmix.py names do not.
_base_ = [
    '../_base_/imagenet/classifier.py',
    'mmpretrain::_base_/datasets/imagenet_bs32_pil_resize.py',
    'mmpretrain::_base_/schedules/imagenet_bs256.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='ACmixResNet',
        depth=50,
        out_indices=(3,),
        norm_eval=False,
        zero_init_residual=False,
    ),
)
train_dataloader = dict(batch_size=16)
optim_wrapper = _base_.pop('no_decay')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.25, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=5, end=90, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=90)
auto_scale_lr = dict(base_batch_size=128)
