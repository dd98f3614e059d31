# The backbone at a tenth of the learning rate, for the optim_wrapper of detection transformers.
#
# Norms, biases, alpha, beta and tables of relative positions of the backbone do not decay. The rest
# of the model keeps the rules of mmdet and mmseg.
#
# As in ../acmix.py, this is a variable, and a config takes it with
#     optim_wrapper = _base_.pop('slow_backbone')
slow_backbone = dict(
    constructor='ACmixOptimWrapperConstructor',
    paramwise_cfg=dict(
        custom_keys=dict(
            # Without _delete_, decay_mult=1.0 of Mask2Former would stay and override both rules.
            backbone=dict(_delete_=True, lr_mult=0.1, norm_decay_mult=0.0, bias_decay_mult=0.0)
        )
    ),
)
