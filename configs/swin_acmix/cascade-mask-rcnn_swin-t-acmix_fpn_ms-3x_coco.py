# Cascade Mask R-CNN, Swin-T-ACmix, FPN, 36 epochs of COCO at several scales.
#
#   python tools/train.py configs/swin_acmix/cascade-mask-rcnn_swin-t-acmix_fpn_ms-3x_coco.py
_base_ = ['./cascade-mask-rcnn_swin-t-acmix_fpn_1x_coco.py', '../_base_/schedules/ms_3x.py']

train_cfg = _base_.ms_3x.train_cfg
train_dataloader = _base_.ms_3x.train_dataloader
param_scheduler = _base_.ms_3x.param_scheduler
