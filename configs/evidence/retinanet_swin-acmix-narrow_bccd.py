# RetinaNet with a narrow Swin-ACmix on BCCD, minutes on a CPU core.
#
#   python tools/train.py configs/evidence/retinanet_swin-acmix-narrow_bccd.py \
#       --cfg-options load_from=PLAIN.pth
#
# A Swin needs many more steps from random weights than there are here. So PLAIN.pth is the plain
# network, acmix_cfg.path_weights=(1,0), after a longer training: alpha starts at 1, beta at 0.
_base_ = './retinanet_resnet26-acmix-narrow_bccd.py'

# RetinaNet does not use the first output, see configs/swin_acmix.
model = dict(
    backbone=dict(
        _delete_=True,
        type='ACmixSwin',
        embed_dims=32,
        depths=(2, 2, 2, 2),
        num_heads=(2, 4, 8, 16),
        drop_path_rate=0.1,
        out_indices=(1, 2, 3),
    ),
    neck=dict(in_channels=[64, 128, 256], start_level=0),
)
