# SPDX-License-Identifier: Apache-2.0
"""Distributed jobs on CPUs, where mmengine assumes GPUs, and with FSDP."""

import atexit
import sys
import time
from datetime import timedelta

import torch.distributed
from mmengine.config import Config
from torch import nn

from ..preflight.type_name import type_name

SECONDS_TO_SETTLE = 0.5


def use_cpu_processes(cfg: Config) -> None:
    """Adapt the config of a distributed job to CPUs: gloo, and model wrappers without a GPU.

    Args:
        cfg: Config to change in place. Without a launcher it is not changed.

    Examples:
        >>> cfg = Config(dict(launcher='pytorch'))
        >>> use_cpu_processes(cfg)
        >>> cfg.env_cfg.dist_cfg.backend, cfg.model_wrapper_cfg.device_ids
        ('gloo', None)
    """
    if cfg.launcher == 'none':
        return
    cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
    # By default, mmengine's wrappers use the local rank as the number of a GPU.
    if not _uses_fsdp(cfg):
        ddp = dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
            device_ids=None,
        )
        cfg.model_wrapper_cfg = ddp | dict(cfg.get('model_wrapper_cfg', {}))
        return
    cfg.merge_from_dict({'strategy.model_wrapper.device_id': 'cpu'})
    if cfg.strategy.get('state_dict_cfg') == 'full':
        # mmengine's settings for 'full', except for offload_to_cpu: on a CPU, torch would free the
        # tensors that it offloads.
        options = dict(rank0_only=True, offload_to_cpu=False)
        cfg.strategy.state_dict_cfg = dict(
            state_dict_type='FULL_STATE_DICT',
            state_dict_config=dict(type='FullStateDictConfig', **options),
            optim_state_dict_config=dict(type='FullOptimStateDictConfig', **options),
        )


def join_cpu_processes(cfg: Config) -> None:
    """Initialize the process group of a job without GPUs, unless it is initialized already.

    mmengine would first assign a GPU to each process, and fail where there is none. It skips both
    steps if the process group exists.

    Args:
        cfg: Config that :func:`use_cpu_processes` has adapted.
    """
    if torch.distributed.is_initialized():
        return
    if cfg.launcher != 'pytorch':
        sys.exit(
            f'--launcher {cfg.launcher} needs accelerators. On machines without them, start the '
            'processes with torchrun (tools/dist_train.sh, tools/dist_test.sh).'
        )
    options = dict(cfg.env_cfg.dist_cfg)
    if 'timeout' in options:
        options['timeout'] = timedelta(seconds=options['timeout'])
    torch.distributed.init_process_group(**options)
    # gloo's threads need the interpreter to release the last tensors that they sent. A thread that
    # does so while the interpreter shuts down aborts the process, and a finished job would fail.
    atexit.register(time.sleep, SECONDS_TO_SETTLE)


def check_fsdp(cfg: Config) -> None:
    """End the process with one message if a config combines FSDP with options it does not support.

    Args:
        cfg: Config with or without FSDP.
    """
    if not _uses_fsdp(cfg):
        return
    if cfg.launcher == 'none':
        sys.exit(
            'FSDP needs several processes: start them with tools/dist_train.sh. To test a '
            'checkpoint in one process, use a config without the FSDP strategy.'
        )
    clip_grad = cfg.get('optim_wrapper', {}).get('clip_grad')
    if clip_grad and clip_grad.get('type', 'norm') == 'norm':
        sys.exit(
            'With FSDP, mmengine would clip the gradient norm of each shard instead of the norm of '
            f'all gradients ({clip_grad}). Set optim_wrapper.clip_grad=None, or clip values with '
            "optim_wrapper.clip_grad=dict(type='value', clip_value=...)."
        )


def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Decide whether FSDP shards a module as a separate unit; for its ``auto_wrap_policy``.

    Every block of an ACmix backbone is a unit: blocks are the modules whose attribute ``fsdp_unit``
    is true. The rest of the model is one unit. Necks and heads are not split, because FSDP gathers
    parameters in ``forward`` only, and detectors call ``loss`` and ``predict`` of their heads.

    Args:
        module: Module that FSDP visits.
        recurse: If true, FSDP asks whether to visit the children of the module. Otherwise it asks
            whether to wrap the module.
        nonwrapped_numel: Number of parameters that are not wrapped yet (not used).

    Examples:
        >>> wrap_blocks(nn.Linear(2, 2), recurse=False, nonwrapped_numel=6)
        False
    """
    return recurse or getattr(module, 'fsdp_unit', False)


def _uses_fsdp(cfg: Config) -> bool:
    return type_name((cfg.get('strategy') or {}).get('type')) == 'FSDPStrategy'
