# RetinaNet, ResNet-38-ACmix, FPN, 12 epochs of COCO.
#
#   python tools/train.py configs/resnet_acmix/retinanet_resnet38-acmix_fpn_1x_coco.py
#
# No ImageNet weights of ResNet-38 were released, neither of the plain network nor with ACmix, so it
# starts from random weights. To start from a checkpoint of configs/imagenet/, add
#     --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=FILE
_base_ = './retinanet_resnet50-acmix_fpn_1x_coco.py'

model = dict(backbone=dict(depth=38, frozen_stages=-1, init_cfg=dict(_delete_=True)))
