# SPDX-License-Identifier: Apache-2.0
"""Read and write checkpoint files without running code that they contain."""

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO
from zipfile import is_zipfile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..atomic_write import WriteError, write_atomically
from .stand_ins import STAND_INS, restore
from .unpickler import load_restricted

# Entries of an mmengine checkpoint's ``meta`` that a published checkpoint keeps: those that
# DetInferencer and MMSegInferencer read, and those that say where the weights come from.
_PUBLISHED_META = ('cfg', 'dataset_meta', 'epoch', 'iter', 'mmengine_version')

# What torch's restricted unpickler, and ours, say of what they do not allow.
_REFUSED = re.compile(r'GLOBAL (?P<name>\S+)|Trying to call reduce|Can only (create|build|set)')


def read_checkpoint(
    file: str | Path | BinaryIO, map_location: Any = 'cpu', mmap: bool = False
) -> Any:
    """Read a checkpoint with ``torch.load(weights_only=True)``, or a safetensors file.

    The classes and functions that training states of mmengine, PVT and Swin contain are replaced by
    those of :mod:`acmix_mm.checkpoints.stand_ins`, which keep values and run nothing. Any other
    class or function is refused.

    Args:
        file: Path of a ``.safetensors`` file, or of any file that ``torch.save`` wrote; or such a
            file of ``torch.save`` opened for reading.
        map_location: Where to put the tensors, as for ``torch.load``. Those of a safetensors file
            are on the CPU. Default: ``'cpu'``.
        mmap: Whether to leave the tensors of a file of ``torch.save`` on the disk until they are
            used, if its format allows it. Default: False.

    Returns:
        Any: Content of the file. For safetensors it is ``dict(state_dict=..., meta=...)``.

    Raises:
        OSError: The file cannot be opened; FileNotFoundError if it does not exist.
        ValueError: The file is not a checkpoint, or reading it could run code.
    """
    if isinstance(file, str | Path):
        file = Path(file)
        if not file.is_file():
            raise FileNotFoundError(f'checkpoint {file} does not exist')
        if file.suffix == '.safetensors':
            return _read_safetensors(file)
        file.open('rb').close()  # may raise an OSError, which is none about the content
        mmap = mmap and is_zipfile(file)
    name = file if isinstance(file, Path) else 'the checkpoint'
    try:
        return restore(load_restricted(file, STAND_INS, map_location, mmap))
    except Exception as error:  # damage raises whatever its bytes happen to ask for
        refused = _REFUSED.search(str(error))
        if refused is None:
            reason = '' if isinstance(error, UnpicklingError) else f': {_first_line(error)}'
            raise ValueError(f'{name} is not a checkpoint written by torch.save{reason}') from None
        what = refused['name'] or 'instructions that no checkpoint needs'
        raise ValueError(
            f'{name} is refused: it contains {what}, and reading that could run code'
        ) from None


def write_checkpoint(
    path: str | Path,
    state_dict: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    hashed: bool = False,
) -> Path:
    """Write weights to a safetensors file, or to a file like those that mmengine writes.

    Args:
        path: Path of the file. A path that ends in ``.safetensors`` gives a safetensors file. The
            folder is created if needed.
        state_dict: The weights to write.
        meta: Plain values to store with the weights. For safetensors they must be serializable to
            JSON.
        hashed: Whether to add the first 8 hex digits of the file's SHA-256 to its name
            (``swin.pth`` -> ``swin-1a2b3c4d.pth``), which
            :func:`torch.hub.load_state_dict_from_url` can check. Default: False.

    Returns:
        Path: Path of the written file.

    Raises:
        ValueError: A tensor has no values, because it is on the meta device, or is not dense; or
            ``meta`` cannot be written as JSON.
        WriteError: The file cannot be written. A former file is unchanged.
    """
    empty = next((name for name, tensor in state_dict.items() if tensor.is_meta), None)
    if empty is not None:
        raise ValueError(f'{empty} is a tensor without values (on the meta device)')
    for name, tensor in state_dict.items():
        if tensor.layout != torch.strided:
            raise ValueError(
                f'{name} is a tensor of layout {tensor.layout}; only dense ones are kept'
            )
    if os.path.isdir(path) or not Path(path).name:
        raise WriteError(
            f'{str(path)!r} cannot be written: it is a folder, not the path of a file.'
        )
    path = Path(path)
    tensors = {name: tensor.contiguous().clone() for name, tensor in state_dict.items()}
    if path.suffix == '.safetensors':
        content = _to_safetensors(tensors, meta)
    else:
        buffer = io.BytesIO()
        torch.save(dict(meta=dict(meta), state_dict=tensors), buffer)
        content = buffer.getvalue()
    if hashed:
        path = path.with_stem(f'{path.stem}-{hashlib.sha256(content).hexdigest()[:8]}')
    write_atomically(path, content)
    return path


def published_meta(checkpoint: Any) -> dict[str, Any]:
    """Return the entries of a checkpoint's ``meta`` that a published checkpoint keeps.

    Args:
        checkpoint: Content of a checkpoint file. If it has no ``meta``, the result is empty.

    Raises:
        ValueError: An entry contains itself.

    Examples:
        >>> published_meta({'state_dict': {}, 'meta': {'epoch': 12, 'seed': 3}})
        {'epoch': 12}
    """
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    if not isinstance(meta, Mapping):
        return {}
    try:
        return {key: _plain(meta[key]) for key in _PUBLISHED_META if key in meta}
    except RecursionError:
        raise ValueError("the checkpoint's meta contains itself") from None


def _plain(value: Any) -> Any:
    """Return a value with lists and numbers instead of numpy's."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _first_line(error: Exception) -> str:
    return f'{type(error).__name__}: {error}'.splitlines()[0]


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework='pt') as file:
            meta = json.loads((file.metadata() or {}).get('meta', '{}'))
            return dict(state_dict={name: file.get_tensor(name) for name in file.keys()}, meta=meta)  # noqa: SIM118
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f'{path} is not a safetensors file: {error}') from None


def _to_safetensors(tensors: dict[str, Tensor], meta: Mapping[str, Any]) -> bytes:
    # A single key, because safetensors writes several keys in random order, which would change the
    # hash of the file.
    try:
        text = json.dumps(meta)
    except (TypeError, ValueError) as error:
        raise ValueError(f'meta cannot be written to a safetensors file: {error}') from None
    return save(tensors, dict(meta=text))
