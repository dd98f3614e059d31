# SPDX-License-Identifier: Apache-2.0
"""Processes that work together: on CPUs, where mmengine takes GPUs for granted, and with FSDP."""

import atexit
import sys
import time
from datetime import timedelta

import torch.distributed
from mmengine.config import Config
from torch import nn

SECONDS_TO_SETTLE = 0.5


def use_cpu_processes(cfg: Config) -> None:
    """Make a config of several processes say what CPUs need: gloo, and wrappers without a GPU.

    Args:
        cfg: Changed in place; left alone unless a launcher is named.

    Examples:
        >>> cfg = Config(dict(launcher='pytorch'))
        >>> use_cpu_processes(cfg)
        >>> cfg.env_cfg.dist_cfg.backend, cfg.model_wrapper_cfg.device_ids
        ('gloo', None)
    """
    if cfg.launcher == 'none':
        return
    cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
    # Unless told, mmengine's wrappers take the rank on this machine for the number of a GPU.
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
        # As mmengine means it, but for offload_to_cpu: torch would free what it "moves" to the CPU.
        options = dict(rank0_only=True, offload_to_cpu=False)
        cfg.strategy.state_dict_cfg = dict(
            state_dict_type='FULL_STATE_DICT',
            state_dict_config=dict(type='FullStateDictConfig', **options),
            optim_state_dict_config=dict(type='FullOptimStateDictConfig', **options),
        )


def join_cpu_processes(cfg: Config) -> None:
    """Join the processes of a job without GPUs, unless that is done.

    mmengine gives each process a GPU before it joins, and fails where there is none; of a process
    that has joined it asks nothing.

    Args:
        cfg: A config that :func:`use_cpu_processes` has seen.
    """
    if torch.distributed.is_initialized():
        return
    if cfg.launcher != 'pytorch':
        sys.exit(
            f'--launcher {cfg.launcher}: on machines without accelerators, processes are started '
            'by torchrun (tools/dist_train.sh, tools/dist_test.sh).'
        )
    options = dict(cfg.env_cfg.dist_cfg)
    if 'timeout' in options:
        options['timeout'] = timedelta(seconds=options['timeout'])
    torch.distributed.init_process_group(**options)
    # gloo's threads need the interpreter to let go of the last tensors that they sent. One that
    # comes when it shuts down aborts the process, and a job that was done counts as failed.
    atexit.register(time.sleep, SECONDS_TO_SETTLE)


def check_fsdp(cfg: Config) -> None:
    """End the process with one message if a config asks for FSDP in a way that it cannot work.

    Args:
        cfg: Config with or without FSDP.
    """
    if not _uses_fsdp(cfg):
        return
    if cfg.launcher == 'none':
        sys.exit(
            'FSDP shards a model over processes: start them with tools/dist_train.sh. A checkpoint '
            "is tested without, with the config that does not have FSDP's strategy."
        )
    clip_grad = cfg.get('optim_wrapper', {}).get('clip_grad')
    if clip_grad and clip_grad.get('type', 'norm') == 'norm':
        sys.exit(
            f'FSDP: mmengine would clip the norm of each shard instead of that of all ({clip_grad}'
            "). Set optim_wrapper.clip_grad=None, or clip values: dict(type='value', "
            'clip_value=...).'
        )


def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Decide whether FSDP shards a module as a unit of its own (its ``auto_wrap_policy``).

    Every block of an ACmix backbone, a module whose attribute ``fsdp_unit`` is true, is a unit; the
    rest of the model is one. Necks and heads are not split: FSDP gathers parameters for ``forward``
    only, and detectors call their ``loss`` and ``predict``.

    Args:
        module: Module that FSDP visits.
        recurse: Whether FSDP asks to visit the children of the module, not to wrap it.
        nonwrapped_numel: Number of parameters that are not wrapped yet.

    Examples:
        >>> wrap_blocks(nn.Linear(2, 2), recurse=False, nonwrapped_numel=6)
        False
    """
    return recurse or getattr(module, 'fsdp_unit', False)


def _uses_fsdp(cfg: Config) -> bool:
    return (cfg.get('strategy') or {}).get('type') == 'FSDPStrategy'
