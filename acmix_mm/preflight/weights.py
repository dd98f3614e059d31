# SPDX-License-Identifier: Apache-2.0
"""Check that the checkpoints of a run can be loaded and fit, before training or testing starts."""

import os
import re
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from ..checkpoints import FAMILIES, backbone_part, identify, unwrap
from ..checkpoints.classifier import of_whole_model
from ..checkpoints.files import read_checkpoint
from ..checkpoints.unwrap import fault_of_tensor, innermost
from .type_name import type_name

SECONDS_TO_ANSWER = 30.0  # that a server may take for each part of a download
_SHARDED = 'MMFullyShardedDataParallel'
_MISMATCH = re.compile(r'size mismatch for (\S+):')  # of torch's load_state_dict
_OTHER_FILE = 'download or copy it again, or give the path of another file'


def check_checkpoints(paths: Iterable[str]) -> None:
    """Raise an error for the first checkpoint that is missing, damaged or without weights.

    Downloads are kept in torch's cache, where the run itself finds them.

    Args:
        paths: Local files, URLs, or other addresses that mmengine supports (``open-mmlab://...``).

    Raises:
        FileNotFoundError: A checkpoint is not there. The message names the checkpoint, the reason,
            and how to continue.
        ValueError: A checkpoint is there and cannot be used. The message says the same.

    Examples:
        >>> check_checkpoints(['nowhere.pth'])
        Traceback (most recent call last):
        ...
        FileNotFoundError: ...
    """
    for path in paths:
        _read(path)


def check_pretrained(model: object) -> None:
    """Check the checkpoints that a model config initializes its parts from.

    Args:
        model: Config of a model. The checkpoints of ACmix backbones must be of a known format of
            their family.

    Raises:
        FileNotFoundError: A checkpoint is not there.
        ValueError: A checkpoint is damaged, has no weights, or is one of another network. The
            message names the file, what it contains, and how to continue.

    Examples:
        >>> init_cfg = dict(type='Pretrained', checkpoint='nowhere.pth')
        >>> check_pretrained(dict(type='ACmixSwin', init_cfg=init_cfg))
        Traceback (most recent call last):
        ...
        FileNotFoundError: ...
    """
    for init_cfg, part in _pretrained(model, {}):
        path = init_cfg['checkpoint']
        content = _read(path)
        family = FAMILIES.get(type_name(part.get('type')))
        if family is None or init_cfg.get('prefix'):
            continue
        try:
            found = identify(backbone_part(unwrap(content))[0])
        except ValueError as error:
            raise ValueError(_message(path, str(error), _OTHER_FILE)) from error
        if found is None or found[0] != family:
            known = ', '.join(fmt.name for fmt in family.formats)
            fault = f'its format is {found[1].name if found else "unknown"}'
            raise ValueError(_message(path, fault, f'give one that {family.name} loads: {known}'))


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
    return (init_cfg['checkpoint'] for init_cfg, _ in _pretrained(model, {}))


def missing_entries(model: nn.Module, checkpoint: Any) -> list[str]:
    """Load a checkpoint into a model, and return the entries of the model that it does not set.

    Entries that still have another shape count as missing. Counters of batches of BatchNorm do not.

    Args:
        model: The model. Load hooks, such as those that convert checkpoints or interpolate entries
            of another shape, are run.
        checkpoint: Content of a checkpoint file.

    Examples:
        >>> model = nn.Linear(2, 2)
        >>> missing_entries(model, dict(state_dict=dict(weight=model.weight)))
        ['bias']
    """
    state_dict = {
        str(name).removeprefix('module.'): value
        for name, value in of_whole_model(checkpoint).items()
    }
    missing: list[str] = []
    # The hook runs before torch raises an error for entries of another shape.
    handle = model.register_load_state_dict_post_hook(
        lambda module, keys: missing.extend(keys.missing_keys)
    )
    try:
        model.load_state_dict(state_dict, strict=False)
    except RuntimeError as error:
        missing += _MISMATCH.findall(str(error))
        if not _MISMATCH.search(str(error)):
            raise
    finally:
        handle.remove()
    return [name for name in missing if not name.endswith('num_batches_tracked')]


def check_fit(model: Any, path: str, complete: bool) -> None:
    """Check that a checkpoint sets the weights of a model.

    Args:
        model: The model, such as that of mmengine's runner. The weights are loaded into it. What is
            no model yet, or sharded, is not checked.
        path: File, URL or other address of the checkpoint.
        complete: Whether the checkpoint must set all weights, as it must for a test. Otherwise one
            is enough.

    Raises:
        ValueError: The checkpoint does not fit. The message names the first missing entries.
    """
    # Models of a FlexibleRunner are built later, and of a sharded one each process has a part.
    if not isinstance(model, nn.Module) or type_name(type(model)) == _SHARDED:
        return
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    content = _read(path)
    expected = model.state_dict()
    for name, value in of_whole_model(content).items():
        own = expected.get(str(name).removeprefix('module.'))
        if isinstance(own, Tensor) and not isinstance(value, Tensor):
            fault = f'entry {name!r} is a {type(value).__name__}, and no tensor'
            raise ValueError(_message(path, fault, _OTHER_FILE))
    missing = missing_entries(model, content)
    number = sum(not name.endswith('num_batches_tracked') for name in expected)
    if not missing or (not complete and len(missing) < number):
        return
    if len(missing) == number:
        mend = (
            'Give a checkpoint of the whole model. One of a backbone alone belongs into '
            "model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...)."
        )
    else:
        mend = (
            'Give a checkpoint of this config. Only tools/test.py --allow-missing takes random '
            'weights there.'
        )
    raise ValueError(
        f'The checkpoint {path} does not fit the model: {len(missing)} of the {number} entries of '
        f'the model are not in it, or have another shape ({_some(missing)}). It contains '
        f'{_some([*innermost(content)])}. {mend}'
    )


def _read(path: str) -> Mapping:
    """Return the content of a checkpoint that has weights."""
    if '://' not in path:
        local = os.path.expanduser(path)
        if not os.path.isfile(local):
            reason = f'no such file; working directory: {Path.cwd()}'
            raise FileNotFoundError(_message(path, reason, 'download it, and give its path'))
        try:
            content = read_checkpoint(local, mmap=True)
        except Exception as error:  # what is in a damaged file may raise any exception
            raise ValueError(_message(path, _reason(error), _OTHER_FILE)) from error
    else:
        print(f'Loading {path} from the network, or from the cache ...', file=sys.stderr)
        try:
            with _timeout(SECONDS_TO_ANSWER):
                content = CheckpointLoader.load_checkpoint(path, map_location='cpu')
        except Exception as error:  # network, cache and file may raise any exception
            mend = 'download it, and give the path of the file instead'
            raise FileNotFoundError(_message(path, _reason(error), mend)) from error
    try:
        if isinstance(content, Mapping) and not isinstance(of_whole_model(content), Mapping):
            raise ValueError(f"its 'state_dict' is a {type(of_whole_model(content)).__name__}")
        weights = innermost(content)
        if not isinstance(weights, Mapping):
            raise ValueError(f'it contains a {type(weights).__name__}, and no weights')
        if not any(isinstance(value, Tensor) for value in weights.values()):
            raise ValueError(f'it contains no weights, but {_some([*weights]) or "nothing"}')
        for name, value in weights.items():
            if not isinstance(name, str):
                raise ValueError(f'the name of an entry is {name!r}, a {type(name).__name__}')
            fault = fault_of_tensor(value) if isinstance(value, Tensor) else None
            if fault:
                raise ValueError(f'entry {name!r} {fault}')
    except ValueError as error:
        raise ValueError(_message(path, str(error), _OTHER_FILE)) from error
    return content


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Limit the time that connections wait, for those that set no limit, such as torch.hub's."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _pretrained(config: object, part: Mapping) -> Iterator[tuple[Mapping, Mapping]]:
    """Yield each initialization from a checkpoint, with the config of the part that it is for."""
    if isinstance(config, Mapping):
        if type_name(config.get('type')) in ('Pretrained', 'PretrainedInit'):
            yield config, part
        if isinstance(config.get('pretrained'), str):
            yield dict(checkpoint=config['pretrained']), config
        for value in config.values():
            yield from _pretrained(value, config)
    elif isinstance(config, Iterable) and not isinstance(config, str):
        for value in config:
            yield from _pretrained(value, part)


def _some(names: Sequence[object]) -> str:
    return ', '.join(map(str, names[:3])) + (', ...' if len(names) > 3 else '')


def _reason(error: Exception) -> str:
    return f'{type(error).__name__}: {shorten(str(error), 250, placeholder=" ...")}'


def _message(path: str, reason: str, mend: str) -> str:
    return '\n'.join([
        f'The checkpoint {path} cannot be loaded ({reason}).',
        'To continue, either:',
        f'  * {mend}',
        '  * start without it, if the config names it for a backbone: model.backbone.init_cfg=None',
        '    (model.pretrained=None in mmseg)',
        '  * try without downloads: `make demo` makes a small data set and trains on it',
    ])  # fmt: skip
