# SPDX-License-Identifier: Apache-2.0
"""Code that the command-line tools share: read a config, check its inputs, build a runner."""

from .config import (
    argument_parser,
    build_runner,
    config_parser,
    load_config,
    mistakes_are_one_message,
    read_config,
    require_fit,
    require_inputs,
    require_outputs,
    train,
)
from .distributed import wrap_blocks
from .mmengine_patches import patch_mmengine
from .work_dir import locked, newest_checkpoint, resume

__all__ = [
    'argument_parser',
    'build_runner',
    'config_parser',
    'load_config',
    'locked',
    'mistakes_are_one_message',
    'newest_checkpoint',
    'patch_mmengine',
    'read_config',
    'require_fit',
    'require_inputs',
    'require_outputs',
    'resume',
    'train',
    'wrap_blocks',
]
