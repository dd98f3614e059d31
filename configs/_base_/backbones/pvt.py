# PVT-ACmix in two sizes, for the model.backbone of any config.
#
# No weights of PVT-ACmix were released. It starts from the plain PVT, with alpha = 1 and beta = 0.
#
# mmengine does not allow two bases of a config to set the same key, and model is a key of the
# models of mmdet and mmseg. So this is a variable, and a config takes it with
#     _base_.pop('pvt').tiny
# pop removes the variable from the base, so that it does not appear in the config itself.
pvt = dict(
    tiny=dict(
        type='ACmixPVT',
        arch='tiny',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_tiny.pth',
        ),
    ),
    small=dict(
        type='ACmixPVT',
        arch='small',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_small.pth',
        ),
    ),
)
