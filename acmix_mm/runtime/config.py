# SPDX-License-Identifier: Apache-2.0
"""Parse the command-line options of the tools, read their configs, and build runners.

A mistake of the user ends the process with one message and exit code 1. A traceback means a bug.
"""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..atomic_write import WriteError
from ..preflight.arguments import check_launcher, check_output_file, check_output_folder
from ..preflight.classes import check_classes
from ..preflight.config_errors import (
    ConfigError,
    OptionsAction,
    check_values,
    merge_options,
    one_line_errors,
    read_config_file,
)
from ..preflight.data_paths import check_data
from ..preflight.libraries import check_scope
from ..preflight.weights import check_checkpoints, check_fit, check_pretrained
from .distributed import check_fsdp, join_cpu_processes, use_cpu_processes
from .foreign_classifier import ForeignClassifierHook
from .mmengine_patches import patch_mmengine
from .saving import name_checkpoint_hook
from .work_dir import locked, resume


def config_parser(description: str) -> ArgumentParser:
    """Make a parser with the arguments ``config`` and ``--cfg-options``.

    Args:
        description: Description of the tool for its ``--help``.
    """
    parser = ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        default={},
        metavar='KEY=VALUE',
        help='override parts of the config, such as train_dataloader.batch_size=4 or '
        'model.backbone.out_indices="(1,2,3)"; data_root=FOLDER replaces the data_root of the '
        'config in every path',
    )
    return parser


def argument_parser(description: str) -> ArgumentParser:
    """Make a parser with the arguments that training and testing share.

    Args:
        description: Description of the tool for its ``--help``.
    """
    parser = config_parser(description)
    parser.add_argument(
        '--work-dir', help='folder for logs and checkpoints (default: work_dirs/<config name>)'
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed job were started (default: none)',
    )
    # torch.distributed.launch passes the rank as an option; torchrun sets LOCAL_RANK.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def read_config(args: Namespace) -> Config:
    """Read the config named on the command line, and apply ``--cfg-options`` to it.

    Args:
        args: Arguments from :func:`config_parser`.
    """
    if not os.path.isfile(args.config):
        sys.exit(f'Config file {args.config} not found (working directory: {Path.cwd()}).')
    try:
        cfg = read_config_file(args.config)
        check_values(cfg)
        check_scope(cfg.get('default_scope'))
        options = dict(args.cfg_options)
        if 'data_root' in options:
            cfg = move_data_root(cfg, options.pop('data_root'))
        warnings = merge_options(cfg, options)
        check_values(cfg)
    except ImportError as error:
        sys.exit(f'{args.config} cannot be used: {error}.')
    except ConfigError as error:
        sys.exit(str(error))
    if os.environ.get('LOCAL_RANK', '0') == '0':
        for warning in warnings:
            print(f'Warning: {warning}', file=sys.stderr)
    return cfg


def load_config(args: Namespace, needed: Iterable[str] = ()) -> Config:
    """Read the config of a run, and adapt it to the launcher and to machines without a GPU.

    Args:
        args: Arguments from :func:`argument_parser`.
        needed: Keys that the config must have.
    """
    os.environ.setdefault('LOCAL_RANK', os.environ.get('SLURM_LOCALID', str(args.local_rank)))
    cfg = read_config(args)
    try:
        check_values(cfg, needed)
    except ConfigError as error:
        sys.exit(str(error))
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

    When a config file is read, the value of its ``data_root`` is copied into the data sets and
    evaluators, so changing the variable later has no effect on them. This function replaces the
    folder at the beginning of every string of the config.

    Args:
        cfg: Config with a top-level ``data_root``.
        data_root: The new folder, with or without a trailing slash.

    Examples:
        >>> cfg = Config(dict(data_root='data/a/', val_evaluator=dict(ann_file='data/a/val.json')))
        >>> move_data_root(cfg, '/disk/a').val_evaluator.ann_file
        '/disk/a/val.json'
    """
    if not isinstance(data_root, str):
        sys.exit(f'data_root must be a str, got {data_root!r}.')
    if cfg.get('data_root') is None:
        sys.exit(
            f'{cfg.filename} has no top-level data_root that data_root={data_root} could replace. '
            'Set the data_root of each data set instead, such as '
            'train_dataloader.dataset.data_root.'
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


def require_inputs(
    cfg: Config, splits: Iterable[str], checkpoints: Iterable[str], pretrained: bool = False
) -> None:
    """End the process with one message if inputs are missing or do not fit the model.

    Inputs are the data and the checkpoints. Of the data, only paths and numbers of classes are
    looked at; ``tools/dataset/check.py`` reads the files.

    It also ends if ``--launcher`` did not start the process.

    Only the first process of each machine checks, because the others would repeat the message.

    Args:
        cfg: Config of the run.
        splits: Splits whose data is needed, from ``'train'``, ``'val'`` and ``'test'``.
        checkpoints: Paths or addresses of the checkpoints that are needed.
        pretrained: Whether those that initialize parts of the model are needed, too. Default:
            False.
    """
    if os.environ.get('LOCAL_RANK', '0') != '0':
        return
    patch_mmengine()  # which checkpoints can be loaded
    try:
        check_launcher(cfg.get('launcher', 'none'))
        check_classes(cfg, *splits)
        check_data(cfg, *splits)
        check_checkpoints(checkpoints)
        if pretrained:
            check_pretrained(cfg.model)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))


def require_outputs(folders: Mapping[str, str | None], files: Mapping[str, str] = {}) -> None:
    """End the process with one message if an output of a run could not be written.

    Args:
        folders: Paths of folders by the options that name them. None is left out.
        files: Paths of files by the options that name them.
    """
    if os.environ.get('LOCAL_RANK', '0') != '0':
        return
    try:
        for option, folder in folders.items():
            if folder is not None:
                check_output_folder(folder, option)
        for option, file in files.items():
            check_output_file(file, option)
    except ValueError as error:
        sys.exit(str(error))


def require_fit(model: Any, checkpoint: str, complete: bool) -> None:
    """Load a checkpoint, or end the process with one message if it does not fit a model.

    Args:
        model: The model, into which the weights are loaded. One that is not built yet, or is
            sharded, is not checked.
        checkpoint: Path or address of the checkpoint.
        complete: Whether it must set all weights of the model. Otherwise one is enough.
    """
    try:
        check_fit(model, checkpoint, complete)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))


@contextmanager
def mistakes_are_one_message(cfg: Config) -> Iterator[None]:
    """End the process with one message if a part of a config cannot be built.

    Args:
        cfg: The config from which parts are built.
    """
    try:
        with one_line_errors(cfg):
            yield
    except ConfigError as error:
        sys.exit(str(error))


def build_runner(cfg: Config) -> Runner:
    """Apply the workarounds for mmengine, and build the runner of a config.

    Args:
        cfg: Config from :func:`load_config`. Without a ``runner_type``, mmengine's ``Runner`` is
            built.
    """
    patch_mmengine()
    name_checkpoint_hook(cfg)
    if cfg.launcher != 'none' and get_device() == 'cpu':
        join_cpu_processes(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.register_hook(ForeignClassifierHook())
    return runner


def train(cfg: Config, resume_newest: bool = False) -> Runner:
    """Train in a work dir that no other training uses, and return the runner.

    If a checkpoint cannot be written, such as to a full disk, the process ends with one message.
    The checkpoint before it is kept.

    Args:
        cfg: Config from :func:`load_config`.
        resume_newest: Whether to go on from the newest checkpoint in the work dir. Default: False.
    """
    with locked(cfg), mistakes_are_one_message(cfg):
        if resume_newest:  # chosen now, when no other training saves a newer one
            resume(cfg, 'auto')
            require_inputs(cfg, (), [cfg.load_from] if cfg.get('load_from') else [])
        runner = build_runner(cfg)
        if cfg.get('load_from') and not cfg.get('resume'):
            require_fit(runner.model, cfg.load_from, complete=False)
        try:
            runner.train()
        except WriteError as error:
            sys.exit(
                f'{error} The training ended; with --resume it goes on from its newest checkpoint.'
            )
    return runner
