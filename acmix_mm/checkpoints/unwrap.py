# SPDX-License-Identifier: Apache-2.0
"""Extract the state dict of a backbone from the content of a checkpoint file."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from .formats import StateDict

# Keys of the state dict in a checkpoint. mmengine uses the first; the released code, Swin and PVT
# use the second.
_KEYS = ('state_dict', 'model')
# Prefixes that wrappers add to every name.
_WRAPPERS = ('module.', '_orig_mod.')


# A tensor with strides of 0 may claim any size. Above this size, in bytes, it must be stored.
_MOST_BYTES_NOT_STORED = 2**30


def unwrap(checkpoint: Any, name: str = 'this checkpoint') -> dict[str, Tensor]:
    """Return the state dict inside a checkpoint.

    The state dict may be the checkpoint itself, or its entry ``'state_dict'`` or ``'model'``.
    Prefixes of wrappers (``module.`` of data parallelism, ``_orig_mod.`` of ``torch.compile``) are
    removed from the names.

    Args:
        checkpoint: Content of a checkpoint file.
        name: Name of the file, for messages. Default: ``'this checkpoint'``.

    Raises:
        ValueError: The checkpoint contains no state dict.

    Examples:
        >>> import torch
        >>> unwrap({'model': {'module.weight': torch.ones(2)}, 'epoch': 300})
        {'weight': tensor([1., 1.])}
    """
    inner = innermost(checkpoint, name)
    if not isinstance(inner, Mapping) or not inner:
        raise ValueError(f'no state dict in {name}: it contains {_describe(checkpoint)}')
    for key, value in inner.items():
        fault = _fault(key, value)
        if fault:
            raise ValueError(
                f'no state dict in {name}: entry {key!r} {fault}; '
                f'it contains {_describe(checkpoint)}'
            )
    state_dict = dict(inner)
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in state_dict):
            state_dict = {name.removeprefix(prefix): t for name, t in state_dict.items()}
    return state_dict


def innermost(checkpoint: Any, name: str = 'this checkpoint') -> Any:
    """Return the entry ``'state_dict'`` or ``'model'`` of a checkpoint, or the checkpoint itself.

    Args:
        checkpoint: Content of a checkpoint file. Its entry may again have such an entry.
        name: Name of the file, for messages. Default: ``'this checkpoint'``.

    Raises:
        ValueError: The checkpoint contains itself.

    Examples:
        >>> innermost({'state_dict': {'weight': 1}, 'epoch': 3})
        {'weight': 1}
    """
    inner, seen = checkpoint, set()
    while isinstance(inner, Mapping):
        if id(inner) in seen:
            raise ValueError(f'no state dict in {name}: it contains itself')
        seen.add(id(inner))
        key = next((key for key in _KEYS if isinstance(inner.get(key), Mapping)), None)
        if key is None:
            break
        inner = inner[key]
    return inner


def backbone_part(state_dict: StateDict) -> tuple[dict[str, Tensor], list[str]]:
    """Extract the backbone from a detector, segmentor or classifier of an mm library.

    Args:
        state_dict: State dict of a whole model, whose backbone has the prefix ``backbone.``, or of
            a backbone alone.

    Returns:
        tuple[dict[str, Tensor], list[str]]: The backbone's state dict without the prefix, and the
        names of all entries outside of the backbone.

    Examples:
        >>> backbone_part({'backbone.conv1.weight': 1, 'neck.conv.weight': 2})
        ({'conv1.weight': 1}, ['neck.conv.weight'])
    """
    inside = [name for name in state_dict if name.startswith('backbone.')]
    if not inside:
        return dict(state_dict), []
    part = {name.removeprefix('backbone.'): state_dict[name] for name in inside}
    return part, [name for name in state_dict if name not in set(inside)]


def _fault(key: Any, value: Any) -> str | None:
    """Return what is wrong with an entry of a state dict, or None."""
    if not isinstance(value, Tensor):
        return f'is a {type(value).__name__}, not a tensor'
    if not isinstance(key, str):
        return f'has a {type(key).__name__} as its name'
    return fault_of_tensor(value)


def fault_of_tensor(value: Tensor) -> str | None:
    """Return what is wrong with a tensor of a checkpoint, or None."""
    if type(value) in (Tensor, Parameter) and value.layout == torch.strided and not value.is_meta:
        size = value.numel() * value.element_size()
        if size > max(_MOST_BYTES_NOT_STORED, value.untyped_storage().nbytes()):
            return f'claims {size / 2**30:.0f} GiB, which the file does not contain'
    return None


def _describe(checkpoint: Any) -> str:
    if isinstance(checkpoint, Mapping):
        keys = [repr(key) for key in checkpoint]
        return f'{", ".join(keys[:5])}{", ..." if len(keys) > 5 else ""}' if keys else 'nothing'
    return f'a {type(checkpoint).__name__}'
