# Settings that the configs with an ACmix backbone share.
custom_imports = dict(imports=['acmix_mm'])

# For optim_wrapper: no weight decay on norms, biases, alpha, beta, tables of relative positions and
# position embeddings.
#
# mmengine does not allow two bases of a config to set the same key, and optim_wrapper is a key of
# the schedules of mmdet, mmseg and mmpretrain. So this is a variable, which a config takes with
#     optim_wrapper = _base_.pop('no_decay')
# pop removes it from the base, so that it does not appear in the config itself.
no_decay = dict(
    constructor='ACmixOptimWrapperConstructor',
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
