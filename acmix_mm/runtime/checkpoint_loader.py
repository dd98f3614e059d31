# SPDX-License-Identifier: Apache-2.0
"""Let mmengine read checkpoints without running code that they contain.

mmengine reads checkpoints for ``init_cfg``, ``load_from``, resuming and testing. Its loader runs
what a file asks for: upstream does so for local files before torch 2.6 and for URLs with any torch.
The OneDL fork does so for what torch's restricted unpickler refuses, and allows ``getattr`` there,
with which a file reaches every function of the process. Resuming executes the text
``meta['config']`` of a file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from ..checkpoints.files import read_checkpoint
from ..checkpoints.stand_ins import History

_MMENGINE = CheckpointLoader.load_checkpoint.__func__
_LOCK = RLock()


def load_checkpoints_safely() -> None:
    """Let ``mmengine.runner.CheckpointLoader`` read every file with :func:`read_checkpoint`.

    mmengine still finds the file: its loaders for addresses, and those that a project registers,
    are called as before. Whatever file they pass to ``torch.load``, it is read with
    ``weights_only=True`` and nothing else.
    """
    CheckpointLoader.load_checkpoint = classmethod(_load_checkpoint)


def _load_checkpoint(
    cls: type[CheckpointLoader],
    filename: str,
    map_location: Any = None,
    logger: Any = 'current',
) -> Any:
    with _torch_loads_safely():
        checkpoint = _MMENGINE(cls, filename, map_location, logger)
    if isinstance(checkpoint, dict):
        _restore_logs(checkpoint)
        _remove_program(checkpoint)
    return checkpoint


@contextmanager
def _torch_loads_safely() -> Iterator[None]:
    """Replace ``torch.load``, which all loaders of mmengine and torch.hub call, for a time.

    A thread that calls it meanwhile is restricted too.
    """
    with _LOCK:
        load = torch.load
        setattr(torch, 'load', _torch_load)  # noqa: B010  mypy refuses an assignment
        try:
            yield
        finally:
            setattr(torch, 'load', load)  # noqa: B010


def _torch_load(file: Any, map_location: Any = None, *_: Any, **__: Any) -> Any:
    return read_checkpoint(file, map_location)


def _restore_logs(checkpoint: dict) -> None:
    """Make history buffers of the logs of a training state, in place."""
    hub = checkpoint.get('message_hub')
    logs = hub.get('log_scalars') if isinstance(hub, dict) else None
    if not isinstance(logs, dict):
        return
    for name, log in logs.items():
        if isinstance(log, History):
            logs[name] = HistoryBuffer(log.values, log.counts, log.max_length)


def _remove_program(checkpoint: dict) -> None:
    """Remove, in place, the text that mmengine would execute while it resumes.

    Checkpoints of mmcv have it. mmengine reads the number of GPUs from it.
    """
    meta = checkpoint.get('meta')
    if isinstance(meta, dict):
        meta.pop('config', None)
