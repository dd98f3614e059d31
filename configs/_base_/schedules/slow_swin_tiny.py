# The backbone at a tenth of the learning rate, as detection transformers train it.
#
# For optim_wrapper.paramwise_cfg.custom_keys. The longest key that a name contains is the one that
# counts, and 'backbone' alone would make everything decay: so what must not is named in full.
slow_swin_tiny = {
    f'backbone.{name}': dict(lr_mult=0.1, decay_mult=0.0)
    for name in [
        'norm',
        'absolute_pos_embed',
        'patch_embed.norm',
        'patch_embed.projection.bias',
        *(f'stages.{stage}.downsample.norm' for stage in range(3)),
        *(
            f'stages.{stage}.blocks.{block}.{name}'
            for stage, depth in enumerate((2, 2, 6, 2))
            for block in range(depth)
            for name in (
                'norm',
                'attn.qkv.bias',
                'attn.proj.bias',
                'attn.relative_position_bias_table',
                'attn.shift_conv.fc_bias',
                'attn.mix',
                'ffn.layers.0.0.bias',
                'ffn.layers.1.bias',
            )
        ),
    ]
}
slow_swin_tiny['backbone'] = dict(lr_mult=0.1)
