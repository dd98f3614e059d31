# SPDX-License-Identifier: Apache-2.0
"""Code that the command-line tools share: read a config, check its inputs, build a runner."""

from .config import (
    argument_parser,
    build_runner,
    config_parser,
    load_config,
    read_config,
    require_inputs,
)
from .distributed import wrap_blocks
from .mmengine_patches import patch_mmengine

__all__ = [
    'argument_parser',
    'build_runner',
    'config_parser',
    'load_config',
    'patch_mmengine',
    'read_config',
    'require_inputs',
    'wrap_blocks',
]
