# Parameters, gradients and optimizer states sharded over the processes (torch's FSDP), for any config:
#
#   _base_ = ['./mask_rcnn_acmix.py', './_base_/strategies/fsdp.py']
#
# is a config of its own, to be started with tools/dist_train.sh. Its checkpoints are whole, and load
# with and without FSDP.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    state_dict_cfg='full',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel', auto_wrap_policy='acmix_mm.engine.wrap_blocks'
    ),
)
