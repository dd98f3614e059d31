# SAN-10-ACmix, for the model.backbone of any config.
#
# No ImageNet weights of SAN-ACmix were released, so it starts from random weights. To start from a
# checkpoint of configs/imagenet/ or of the plain SAN, add
#     --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=FILE
#
# mmengine does not allow two bases of a config to set the same key, and model is a key of the
# models of mmdet and mmseg. So this is a variable, and a config takes it with
#     _base_.pop('san10')
# pop removes the variable from the base, so that it does not appear in the config itself.
san10 = dict(
    type='ACmixSAN',
    depth=10,
    norm_cfg=dict(type='SyncBN', requires_grad=True),
    norm_eval=False,
)
