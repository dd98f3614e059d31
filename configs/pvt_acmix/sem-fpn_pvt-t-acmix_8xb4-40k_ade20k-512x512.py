# Semantic FPN, PVT-T-ACmix, 40k iterations of ADE20K.
#
#   python tools/train.py configs/pvt_acmix/sem-fpn_pvt-t-acmix_8xb4-40k_ade20k-512x512.py
#
# The optimizer and schedule of PVT's release. Batch and learning rate are twice those of 80k
# iterations.
_base_ = './sem-fpn_pvt-t-acmix_4xb4-80k_ade20k-512x512.py'

train_cfg = dict(max_iters=40000, val_interval=4000)
default_hooks = dict(checkpoint=dict(interval=4000))
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=40000, by_epoch=False)]
