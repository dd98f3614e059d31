# Parameters, gradients and optimizer states sharded over processes (torch's FSDP). A config with
#
#   _base_ = ['./mask_rcnn_acmix.py', './_base_/strategies/fsdp.py']
#
# is the first with FSDP, to be started by tools/dist_train.sh. Checkpoints are whole, and load with
# and without FSDP.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    state_dict_cfg='full',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel', auto_wrap_policy='acmix_mm.runtime.wrap_blocks'
    ),
)
