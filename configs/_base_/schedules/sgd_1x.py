# 12 epochs of COCO with SGD, for ResNet and SAN.
_base_ = ['mmdet::_base_/schedules/schedule_1x.py', '../acmix.py']

optim_wrapper = _base_.pop('no_decay')
