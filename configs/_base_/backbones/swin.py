# Swin-ACmix for model.backbone, in the place of any other.
#
# It starts from the plain Swin, at alpha = 1 and beta = 0. With the Swin-ACmix weights of the
# authors' release, which has no stable address, saved as FILE, add
#     --cfg-options model.backbone.init_cfg.checkpoint=FILE
swin_tiny = dict(
    type='ACmixSwin',
    depths=(2, 2, 6, 2),
    drop_path_rate=0.2,
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
        'swin_tiny_patch4_window7_224.pth',
    ),
)
swin_small = dict(
    type='ACmixSwin',
    depths=(2, 2, 18, 2),
    drop_path_rate=0.2,
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
        'swin_small_patch4_window7_224.pth',
    ),
)
swin_channels = [96, 192, 384, 768]
