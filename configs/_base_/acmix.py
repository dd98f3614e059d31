# What every config with an ACmix backbone needs.
custom_imports = dict(imports=['acmix_mm'])

# Weight decay would pull the weights of the two paths to 0. For optim_wrapper, in every family.
paramwise_cfg = dict(
    custom_keys={'mix.alpha': dict(decay_mult=0.0), 'mix.beta': dict(decay_mult=0.0)}
)
