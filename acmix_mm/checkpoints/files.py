# SPDX-License-Identifier: Apache-2.0
"""Read and write checkpoint files without running code that they contain."""

import hashlib
import io
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .unpickler import load_restricted

# Entries of an mmengine checkpoint's ``meta`` that a published checkpoint keeps: those that
# DetInferencer and MMSegInferencer read, and those that say where the weights come from.
_PUBLISHED_META = ('cfg', 'dataset_meta', 'epoch', 'iter', 'mmengine_version')


class _Ignored:
    """Replacement for a class of the training state: accepts any arguments and does nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _Mapping(OrderedDict):
    """Replacement for a class of settings: the plain mapping that it contains."""

    def __new__(cls, *_: Any) -> OrderedDict:  # type: ignore[misc]
        return OrderedDict()


# Classes and functions that training states contain besides tensors and plain containers: logs of
# mmengine (numpy numbers and references to methods), arguments of PVT's training script, and
# settings of Swin's training script.
_NUMPY = [f'numpy.{core}.multiarray' for core in ('core', '_core')]
_STAND_INS: dict[tuple[str, str], type] = {
    ('mmengine.logging.history_buffer', 'HistoryBuffer'): _Ignored,
    ('builtins', 'getattr'): _Ignored,
    ('numpy', 'ndarray'): _Ignored,
    ('numpy', 'dtype'): _Ignored,
    **{(module, name): _Ignored for module in _NUMPY for name in ('_reconstruct', 'scalar')},
    ('argparse', 'Namespace'): _Ignored,
    ('yacs.config', 'CfgNode'): _Mapping,
}


def read_checkpoint(path: str | Path) -> Any:
    """Read a checkpoint with ``torch.load(weights_only=True)``, or a safetensors file.

    The classes and functions that training states of mmengine, PVT and Swin contain are replaced by
    ones that do nothing. Any other class or function is refused.

    Args:
        path: Path of a ``.safetensors`` file, or of any file that ``torch.save`` wrote.

    Returns:
        Any: Content of the file, on the CPU. For safetensors it is
        ``dict(state_dict=..., meta=...)``.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not a checkpoint, or reading it could run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    if path.suffix == '.safetensors':
        return _read_safetensors(path)
    try:
        return load_restricted(path, _STAND_INS)
    except UnpicklingError as error:
        refused = re.search(r'GLOBAL (\S+)', str(error))
        if refused is None:
            raise ValueError(f'{path} is not a checkpoint written by torch.save') from None
        raise ValueError(
            f'{path} is refused: it contains {refused[1]}, and reading that could run code'
        ) from None
    except (RuntimeError, EOFError) as error:
        raise ValueError(f'{path} is not a checkpoint written by torch.save: {error}') from None


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
    """
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
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def published_meta(checkpoint: Any) -> dict[str, Any]:
    """Return the entries of a checkpoint's ``meta`` that a published checkpoint keeps.

    Args:
        checkpoint: Content of a checkpoint file. If it has no ``meta``, the result is empty.

    Examples:
        >>> published_meta({'state_dict': {}, 'meta': {'epoch': 12, 'seed': 3}})
        {'epoch': 12}
    """
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    return {key: meta[key] for key in _PUBLISHED_META if key in meta} if meta else {}


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework='pt') as file:
            meta = json.loads((file.metadata() or {}).get('meta', '{}'))
            return dict(state_dict={name: file.get_tensor(name) for name in file.keys()}, meta=meta)  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f'{path} is not a safetensors file: {error}') from None


def _to_safetensors(tensors: dict[str, Tensor], meta: Mapping[str, Any]) -> bytes:
    # A single key, because safetensors writes several keys in random order, which would change the
    # hash of the file.
    return save(tensors, dict(meta=json.dumps(meta)))
