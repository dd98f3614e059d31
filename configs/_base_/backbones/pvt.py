# PVT-ACmix for model.backbone, in the place of any other.
#
# No weights of PVT-ACmix were released. It starts from the plain PVT, at alpha = 1 and beta = 0.
pvt_tiny = dict(
    type='ACmixPVT',
    num_layers=(2, 2, 2, 2),
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_tiny.pth',
    ),
)
pvt_small = dict(
    type='ACmixPVT',
    num_layers=(3, 4, 6, 3),
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_small.pth',
    ),
)
pvt_channels = [64, 128, 320, 512]
