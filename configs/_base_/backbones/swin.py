# Swin-ACmix in two sizes, for the model.backbone of any config.
#
# It starts from the plain Swin, with alpha = 1 and beta = 0. The authors released weights of
# Swin-ACmix, but at no permanent address. To start from them, save them as FILE and add
#     --cfg-options model.backbone.init_cfg.checkpoint=FILE
#
# mmengine does not allow two bases of a config to set the same key, and model is a key of the
# models of mmdet and mmseg. So this is a variable, and a config takes it with
#     _base_.pop('swin').tiny
# pop removes the variable from the base, so that it does not appear in the config itself.
swin = dict(
    tiny=dict(
        type='ACmixSwin',
        arch='tiny',
        drop_path_rate=0.2,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
            'swin_tiny_patch4_window7_224.pth',
        ),
    ),
    small=dict(
        type='ACmixSwin',
        arch='small',
        drop_path_rate=0.2,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
            'swin_small_patch4_window7_224.pth',
        ),
    ),
)
