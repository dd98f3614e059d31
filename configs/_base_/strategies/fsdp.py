# Training with torch's FSDP, which shards parameters, gradients and optimizer states over
# processes. To use it, write a config with
#
#   _base_ = ['./mask_rcnn_acmix.py', './_base_/strategies/fsdp.py']
#
# and start it with tools/dist_train.sh. Checkpoints contain the whole model, and load with and
# without FSDP.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    state_dict_cfg='full',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel', auto_wrap_policy='acmix_mm.runtime.wrap_blocks'
    ),
)
