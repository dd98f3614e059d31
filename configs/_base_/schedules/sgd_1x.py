# 12 epochs of COCO with SGD, for the convolutional networks.
_base_ = ['mmdet::_base_/schedules/schedule_1x.py', '../acmix.py']

optim_wrapper = dict(paramwise_cfg=_base_.paramwise_cfg)
