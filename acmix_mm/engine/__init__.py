"""What the command-line tools share: reading a config, checking what it needs, running it."""

from .cli import (
    argument_parser,
    build_runner,
    config_parser,
    load_config,
    read_config,
    require_inputs,
)
from .distributed import wrap_blocks
from .weights import check_checkpoints, pretrained_checkpoints

__all__ = [
    'argument_parser',
    'build_runner',
    'check_checkpoints',
    'config_parser',
    'load_config',
    'pretrained_checkpoints',
    'read_config',
    'require_inputs',
    'wrap_blocks',
]
