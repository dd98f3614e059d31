# SPDX-License-Identifier: Apache-2.0
"""Extract the state dict of a backbone from the content of a checkpoint file."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .formats import StateDict

# Keys of the state dict in a checkpoint. mmengine uses the first; the released code, Swin and PVT
# use the second.
_KEYS = ('state_dict', 'model')
# Prefixes that wrappers add to every name.
_WRAPPERS = ('module.', '_orig_mod.')


def unwrap(checkpoint: Any) -> dict[str, Tensor]:
    """Return the state dict inside a checkpoint.

    The state dict may be the checkpoint itself, or its entry ``'state_dict'`` or ``'model'``.
    Prefixes of wrappers (``module.`` of data parallelism, ``_orig_mod.`` of ``torch.compile``) are
    removed from the names.

    Args:
        checkpoint: Content of a checkpoint file.

    Raises:
        ValueError: The checkpoint contains no state dict.

    Examples:
        >>> import torch
        >>> unwrap({'model': {'module.weight': torch.ones(2)}, 'epoch': 300})
        {'weight': tensor([1., 1.])}
    """
    inner = checkpoint
    while isinstance(inner, Mapping) and any(isinstance(inner.get(key), Mapping) for key in _KEYS):
        inner = next(inner[key] for key in _KEYS if isinstance(inner.get(key), Mapping))
    if not isinstance(inner, Mapping) or not inner:
        raise ValueError(f'no state dict in this checkpoint: it contains {_describe(checkpoint)}')
    wrong = [key for key, value in inner.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(
            f'no state dict in this checkpoint: entry {wrong[0]!r} is a '
            f'{type(inner[wrong[0]]).__name__}, not a tensor; it contains {_describe(checkpoint)}'
        )
    state_dict = dict(inner)
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in state_dict):
            state_dict = {name.removeprefix(prefix): t for name, t in state_dict.items()}
    return state_dict


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


def _describe(checkpoint: Any) -> str:
    if isinstance(checkpoint, Mapping):
        keys = [repr(key) for key in checkpoint]
        return f'{", ".join(keys[:5])}{", ..." if len(keys) > 5 else ""}' if keys else 'nothing'
    return f'a {type(checkpoint).__name__}'
