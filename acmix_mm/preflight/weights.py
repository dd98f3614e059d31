# SPDX-License-Identifier: Apache-2.0
"""Check that the checkpoints of a run can be loaded, before anything is built."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmengine.runner import CheckpointLoader

from .type_name import type_name


def check_checkpoints(paths: Iterable[str]) -> None:
    """Raise an error for the first checkpoint that is missing or cannot be downloaded.

    Downloads are kept in torch's cache, where the run itself finds them.

    Args:
        paths: Local files, URLs, or other addresses that mmengine supports (``open-mmlab://...``).

    Raises:
        FileNotFoundError: A checkpoint cannot be loaded. The message names the checkpoint, the
            reason, and how to continue.

    Examples:
        >>> check_checkpoints(['nowhere.pth'])
        Traceback (most recent call last):
        ...
        FileNotFoundError: ...
    """
    for path in paths:
        if '://' not in path:
            if not os.path.isfile(os.path.expanduser(path)):
                raise FileNotFoundError(
                    _message(path, f'no such file; working directory: {Path.cwd()}')
                )
            continue
        try:
            CheckpointLoader.load_checkpoint(path, map_location='cpu')
        except Exception as error:  # network, cache and file may raise any exception
            raise FileNotFoundError(_message(path, f'{type(error).__name__}: {error}')) from error


def pretrained_checkpoints(model: object) -> Iterator[str]:
    """Yield the checkpoints that a model config initializes its parts from.

    Args:
        model: Config of a model, or of a part of one.

    Yields:
        str: ``checkpoint`` of each ``init_cfg=dict(type='Pretrained', ...)``, and the value of each
        ``pretrained``.

    Examples:
        >>> init_cfg = dict(type='Pretrained', checkpoint='r50.pth')
        >>> list(pretrained_checkpoints(dict(backbone=dict(type='ResNet', init_cfg=init_cfg))))
        ['r50.pth']
    """
    if isinstance(model, dict):
        if type_name(model.get('type')) in ('Pretrained', 'PretrainedInit'):
            yield model['checkpoint']
        if isinstance(model.get('pretrained'), str):
            yield model['pretrained']
        model = model.values()
    if isinstance(model, Iterable) and not isinstance(model, str):
        for part in model:
            yield from pretrained_checkpoints(part)


def _message(path: str, reason: str) -> str:
    return '\n'.join([
        f'The checkpoint {path} cannot be loaded ({reason}).',
        'To continue, either:',
        '  * download it, and give the path of the file instead',
        '  * start without it: --cfg-options model.backbone.init_cfg=None for a backbone',
        '    (model.pretrained=None in mmseg)',
        '  * try without downloads: `make demo` makes a small data set and trains on it',
    ])  # fmt: skip
