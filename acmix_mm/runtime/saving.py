# SPDX-License-Identifier: Apache-2.0
"""Let mmengine save checkpoints so that none is lost when a training is killed."""

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from ..hooks import ResumableCheckpointHook

# What configs call mmengine's hook. The classes of other projects can have the same last name.
_NAMES = (
    CheckpointHook,
    'CheckpointHook',
    'mmengine.CheckpointHook',
    'mmengine.hooks.CheckpointHook',
    f'{CheckpointHook.__module__}.CheckpointHook',
)


def save_checkpoints_safely() -> None:
    """Let mmengine build our checkpoint hook.

    Every config whose ``default_hooks`` name mmengine's ``CheckpointHook``, or none, gets
    :class:`acmix_mm.hooks.ResumableCheckpointHook`. A hook of another class is left alone.
    """
    HOOKS.register_module(name='CheckpointHook', module=ResumableCheckpointHook, force=True)


def name_checkpoint_hook(cfg: Config) -> None:
    """Change a config, in place, so that the registry is asked for its checkpoint hook.

    Configs in Python's own syntax contain mmengine's class itself, or its whole name.
    """
    hook = (cfg.get('default_hooks') or {}).get('checkpoint')
    if hook and hook.get('type') in _NAMES:
        hook.type = 'CheckpointHook'
