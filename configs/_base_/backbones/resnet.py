# ResNet-50-ACmix, for the model.backbone of any config.
#
# No ImageNet weights of ResNet-ACmix were released. The stem, the 1x1 convolutions and the norms
# start from torchvision's plain ResNet-50, and the ACmix layers from random weights. Therefore only
# the stem is frozen, and the norms are trained and synchronized between GPUs.
#
# mmengine does not allow two bases of a config to set the same key, and model is a key of the
# models of mmdet and mmseg. So this is a variable, and a config takes it with
#     _base_.pop('resnet50')
# pop removes the variable from the base, so that it does not appear in the config itself.
resnet50 = dict(
    type='ACmixResNet',
    depth=50,
    frozen_stages=0,
    norm_cfg=dict(type='SyncBN', requires_grad=True),
    norm_eval=False,
    init_cfg=dict(
        type='Pretrained', checkpoint='https://download.pytorch.org/models/resnet50-0676ba61.pth'
    ),
)
