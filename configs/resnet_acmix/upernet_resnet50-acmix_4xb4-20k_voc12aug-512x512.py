# UPerNet, ResNet-50-ACmix, 20k iterations of PASCAL VOC 2012 with the extra annotations (aug).
#
#   python tools/train.py configs/resnet_acmix/upernet_resnet50-acmix_4xb4-20k_voc12aug-512x512.py
_base_ = [
    'mmseg::_base_/models/upernet_r50.py',
    'mmseg::_base_/datasets/pascal_voc12_aug.py',
    'mmseg::_base_/schedules/schedule_20k.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/acmix.py',
    '../_base_/backbones/resnet.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(_base_.pop('resnet50'), _delete_=True),
    decode_head=dict(num_classes=21),
    auxiliary_head=dict(num_classes=21),
)
optim_wrapper = _base_.pop('no_decay')
