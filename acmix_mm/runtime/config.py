# SPDX-License-Identifier: Apache-2.0
"""Command-line options and configs of the tools, and the runner that a config describes.

Mistakes of the user end the process with one message and exit code 1; a traceback means a mistake
in the code.
"""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..preflight.data_paths import check_data
from ..preflight.libraries import check_scope
from ..preflight.weights import check_checkpoints
from .distributed import check_fsdp, join_cpu_processes, use_cpu_processes
from .mmengine_patches import patch_mmengine


def config_parser(description: str) -> ArgumentParser:
    """Make a parser for a config and the option that changes it."""
    parser = ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override parts of the config, such as train_dataloader.batch_size=4 or '
        'model.backbone.out_indices="(1,2,3)"; data_root=FOLDER moves every path below '
        "the config's data_root",
    )
    return parser


def argument_parser(description: str) -> ArgumentParser:
    """Make a parser for a config and the options that training and testing share."""
    parser = config_parser(description)
    parser.add_argument(
        '--work-dir', help='folder for logs and checkpoints (default: work_dirs/<config name>)'
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes of a distributed job',
    )
    # torch.distributed.launch passes the rank as an option; torchrun sets the variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def read_config(args: Namespace) -> Config:
    """Read the config named on the command line and apply the options that change it."""
    if not os.path.isfile(args.config):
        sys.exit(f'Config file {args.config} not found (working directory: {Path.cwd()}).')
    try:
        cfg = Config.fromfile(args.config)
    except ModuleNotFoundError as error:  # of a library whose configs it inherits
        sys.exit(f'{args.config} cannot be read: {error}.')
    try:
        check_scope(cfg.get('default_scope'))
    except ImportError as error:
        sys.exit(f'{args.config} cannot be used: {error}.')
    options = dict(args.cfg_options)
    if 'data_root' in options:
        cfg = move_data_root(cfg, options.pop('data_root'))
    cfg.merge_from_dict(options)
    return cfg


def load_config(args: Namespace) -> Config:
    """Read the config of a run and adapt it to this machine."""
    os.environ.setdefault('LOCAL_RANK', os.environ.get('SLURM_LOCALID', str(args.local_rank)))
    cfg = read_config(args)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    if get_device() == 'cpu':
        for split in ('train', 'val', 'test'):
            if (cfg.get(f'{split}_dataloader') or {}).get('pin_memory'):
                cfg[f'{split}_dataloader'].pin_memory = False
        use_cpu_processes(cfg)
    check_fsdp(cfg)
    return cfg


def move_data_root(cfg: Config, data_root: str) -> Config:
    """Return a copy of a config that reads its data from another folder.

    A config's ``data_root`` is a variable whose value is copied into data sets and evaluators when
    the file is read, so setting it later has no effect on them. This function replaces it at the
    beginning of every string.

    Args:
        cfg: Config with a top-level ``data_root``.
        data_root: The new folder.

    Examples:
        >>> cfg = Config(dict(data_root='data/a/', val_evaluator=dict(ann_file='data/a/val.json')))
        >>> move_data_root(cfg, '/disk/a').val_evaluator.ann_file
        '/disk/a/val.json'
    """
    if 'data_root' not in cfg:
        sys.exit(
            f'{cfg.filename} has no data_root to move: set the data_root of each of its data sets, '
            'such as train_dataloader.dataset.data_root.'
        )
    old, new = cfg.data_root.rstrip('/'), data_root.rstrip('/')

    def move(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: move(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(move(item) for item in value)
        if isinstance(value, str) and f'{value}/'.startswith(f'{old}/'):
            return new + value[len(old) :]
        return value

    return Config(move(cfg.to_dict()), filename=cfg.filename)


def require_inputs(cfg: Config, splits: Iterable[str], checkpoints: Iterable[str]) -> None:
    """End the process with one message if data or checkpoints are missing.

    Only the first process of each machine checks; the others would print the same message.

    Args:
        cfg: Config that is about to run.
        splits: See :func:`acmix_mm.preflight.data_paths.check_data`.
        checkpoints: See :func:`acmix_mm.preflight.weights.check_checkpoints`.
    """
    if os.environ.get('LOCAL_RANK', '0') != '0':
        return
    try:
        check_data(cfg, *splits)
        check_checkpoints(checkpoints)
    except FileNotFoundError as error:
        sys.exit(str(error))


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config, with the workarounds for mmengine applied.

    Args:
        cfg: Config with or without a ``runner_type``; the default is mmengine's ``Runner``.
    """
    patch_mmengine()
    if cfg.launcher != 'none' and get_device() == 'cpu':
        join_cpu_processes(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
