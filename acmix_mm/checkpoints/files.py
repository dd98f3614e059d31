# SPDX-License-Identifier: Apache-2.0
"""Reads and writes checkpoint files without running code that they contain."""

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

# What of an mmengine checkpoint's `meta` is of use without the training: what DetInferencer and
# MMSegInferencer read, and where the weights come from.
_PUBLISHED_META = ('cfg', 'dataset_meta', 'epoch', 'iter', 'mmengine_version')


class _Ignored:
    """Stands in for an object of the training state: takes whatever it is given, does nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _Mapping(OrderedDict):
    """Stands in for a class of settings, as the plain mapping that it holds."""

    def __new__(cls, *_: Any) -> OrderedDict:  # type: ignore[misc]
        return OrderedDict()


# What training states hold besides tensors and plain containers: logs of mmengine (numpy numbers
# and references to methods), arguments of PVT's and settings of Swin's training script.
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

    Classes that training states of mmengine, PVT and Swin are known to hold are not created but
    replaced by objects that do nothing. Any other class or function is refused.

    Args:
        path: A ``.safetensors`` file, or anything that ``torch.save`` wrote.

    Returns:
        Any: What the file holds, on the CPU; of safetensors ``dict(state_dict=..., meta=...)``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no checkpoint, or reading it would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no checkpoint {path}')
    if path.suffix == '.safetensors':
        return _read_safetensors(path)
    stand_ins: list[Any] = [
        type(name, (base,), dict(__module__=module, __qualname__=name))
        for (module, name), base in _STAND_INS.items()
    ]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location='cpu', weights_only=True)
    except UnpicklingError as error:
        refused = re.search(r'GLOBAL (\S+)', str(error))
        if refused is None:
            raise ValueError(f'{path} is no checkpoint that torch.save wrote') from None
        raise ValueError(
            f'{path} is refused: it holds {refused[1]}, and reading that could run code'
        ) from None
    except (RuntimeError, EOFError) as error:
        raise ValueError(f'{path} is no checkpoint that torch.save wrote: {error}') from None


def write_checkpoint(
    path: str | Path,
    state_dict: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    hashed: bool = False,
) -> Path:
    """Write weights: a safetensors file if the name ends so, else as mmengine writes them.

    Args:
        path: Path of the file; its folder is created if needed.
        state_dict: The weights.
        meta: Other plain values to keep.
        hashed: Whether to put the first 8 hex digits of the file's SHA-256 in its name,
            ``swin.pth`` -> ``swin-1a2b3c4d.pth``, as :func:`torch.hub.load_state_dict_from_url`
            checks it.

    Returns:
        Path: The file.
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
    """What of a checkpoint's ``meta`` is of use without the training.

    Args:
        checkpoint: As read from a file, of mmengine or not.

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
        raise ValueError(f'{path} is no safetensors file: {error}') from None


def _to_safetensors(tensors: dict[str, Tensor], meta: Mapping[str, Any]) -> bytes:
    # One key alone: safetensors writes several in random order, and the hash should not change.
    return save(tensors, dict(meta=json.dumps(meta)))
