# Cascade Mask R-CNN, ResNet-50-ACmix, FPN, 36 epochs of COCO at several scales.
#
#   python tools/train.py configs/resnet_acmix/cascade-mask-rcnn_resnet50-acmix_fpn_ms-3x_coco.py
_base_ = ['./cascade-mask-rcnn_resnet50-acmix_fpn_1x_coco.py', '../_base_/schedules/ms_3x.py']

train_cfg = _base_.pop('train_cfg_3x')
train_pipeline = _base_.pop('train_pipeline_ms')
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
param_scheduler = _base_.pop('param_scheduler_3x')
