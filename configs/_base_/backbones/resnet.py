# ResNet-50-ACmix for model.backbone, in the place of any other.
#
# No ImageNet weights of ResNet-ACmix were released. The plain ResNet-50 of torchvision gives its
# stem, 1x1 convolutions and norms; the ACmix layers start from nothing. So the stem alone is
# frozen, and the norms are trained and synchronised.
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
