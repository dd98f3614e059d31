# Semantic FPN, SAN-19-ACmix, 40k iterations of ADE20K.
#
#   python tools/train.py configs/san_acmix/sem-fpn_san19-acmix_8xb4-40k_ade20k-512x512.py
_base_ = './sem-fpn_san10-acmix_8xb4-40k_ade20k-512x512.py'

model = dict(backbone=dict(depth=19))
