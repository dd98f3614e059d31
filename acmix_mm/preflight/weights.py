# SPDX-License-Identifier: Apache-2.0
"""Check that the checkpoints which a run starts from can be had, before anything is built."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmengine.runner import CheckpointLoader


def check_checkpoints(paths: Iterable[str]) -> None:
    """Raise one clear error for the first checkpoint that is missing or cannot be fetched.

    What is fetched lands in torch's cache, where the run itself finds it.

    Args:
        paths: Local files, URLs, or what else mmengine resolves (``open-mmlab://...``).

    Raises:
        FileNotFoundError: The message names the checkpoint, where it was looked for, and how to go
            on.

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
        except Exception as error:  # whatever the network, the cache or the file has against it
            raise FileNotFoundError(_message(path, f'{type(error).__name__}: {error}')) from error


def pretrained_checkpoints(model: object) -> Iterator[str]:
    """Every checkpoint that a model config starts from.

    Args:
        model: Config of a model, or a part of one.

    Yields:
        ``checkpoint`` of each ``init_cfg=dict(type='Pretrained', ...)`` and each ``pretrained``.

    Examples:
        >>> init_cfg = dict(type='Pretrained', checkpoint='r50.pth')
        >>> list(pretrained_checkpoints(dict(backbone=dict(type='ResNet', init_cfg=init_cfg))))
        ['r50.pth']
    """
    if isinstance(model, dict):
        if model.get('type') == 'Pretrained':
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
        '  * download it and name the file instead, or start without it: for a backbone',
        '    --cfg-options model.backbone.init_cfg=None (model.pretrained=None in mmseg)',
        '  * try without downloads: `make demo` trains on a small data set that it makes',
    ])  # fmt: skip
