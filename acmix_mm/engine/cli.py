"""Common ground of the command-line tools.

Mistakes of the caller end the process with one message and exit code 1; a traceback is left for
mistakes of the code.
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

from ..datasets import check_data
from ..dependencies import check_scope
from .distributed import check_fsdp, join_cpu_processes, use_cpu_processes
from .weights import check_checkpoints


def config_parser(description: str) -> ArgumentParser:
    """A parser with the config and the option that changes it."""
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
    """A parser with the config and the options that training and testing share."""
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
    """Read the config that the arguments name, with their changes made."""
    if not os.path.isfile(args.config):
        sys.exit(f'There is no config {args.config}, seen from {Path.cwd()}.')
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
    """Read the config that the arguments of a run name, changed and fit for this machine."""
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
    """A config that reads its data below another folder.

    A config's ``data_root`` is a variable whose value is copied into data sets and evaluators when
    the file is read, so setting it later reaches none of them. This replaces it at the beginning of
    every string.

    Args:
        cfg: A config with a top-level ``data_root``.
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

    The first process of each machine looks; the others would only say the same again.

    Args:
        cfg: The config that is about to run.
        splits: See :func:`acmix_mm.datasets.check_data`.
        checkpoints: See :func:`acmix_mm.engine.check_checkpoints`.
    """
    if os.environ.get('LOCAL_RANK', '0') != '0':
        return
    try:
        check_data(cfg, *splits)
        check_checkpoints(checkpoints)
    except FileNotFoundError as error:
        sys.exit(str(error))


def build_runner(cfg: Config) -> Runner:
    """The runner that the config asks for, mmengine's own if it names none."""
    if cfg.launcher != 'none' and get_device() == 'cpu':
        join_cpu_processes(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
