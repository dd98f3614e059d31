# RetinaNet, SAN-19-ACmix, FPN, 12 epochs of COCO.
#
#   python tools/train.py configs/san_acmix/retinanet_san19-acmix_fpn_1x_coco.py
_base_ = './retinanet_san10-acmix_fpn_1x_coco.py'

model = dict(backbone=dict(depth=19))
