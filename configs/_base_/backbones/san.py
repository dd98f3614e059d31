# SAN-ACmix for model.backbone, in the place of any other.
#
# It starts from nothing: no ImageNet weights of SAN-ACmix were released. To start from a checkpoint
# of configs/imagenet/ or of plain SAN, add
#     --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=FILE
san10 = dict(
    type='ACmixSAN',
    depth=10,
    norm_cfg=dict(type='SyncBN', requires_grad=True),
    norm_eval=False,
)
