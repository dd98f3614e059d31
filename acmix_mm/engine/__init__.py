"""What tools/train.py and tools/test.py share: reading a config, checking it, running it."""

from .cli import argument_parser, build_runner, load_config, require_inputs
from .weights import check_checkpoints, pretrained_checkpoints

__all__ = [
    'argument_parser',
    'build_runner',
    'check_checkpoints',
    'load_config',
    'pretrained_checkpoints',
    'require_inputs',
]
