# What every config with an ACmix backbone needs.
custom_imports = dict(imports=['acmix_mm'])

# For optim_wrapper: no weight decay on norms, biases, position embeddings and their tables, and the
# weights of the two paths.
paramwise_cfg = dict(
    norm_decay_mult=0.0,
    bias_decay_mult=0.0,
    custom_keys={
        'mix.alpha': dict(decay_mult=0.0),
        'mix.beta': dict(decay_mult=0.0),
        'shift_conv.fc_bias': dict(decay_mult=0.0),
        'relative_position_bias_table': dict(decay_mult=0.0),
        'pos_embed': dict(decay_mult=0.0),
    },
)
