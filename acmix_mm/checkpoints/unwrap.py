# SPDX-License-Identifier: Apache-2.0
"""From what a file holds to the state dict of a backbone."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .formats import StateDict

# Under which the state dict lies: mmengine's name, and that of the released code, Swin and PVT.
_KEYS = ('state_dict', 'model')
# What wrappers put before every name.
_WRAPPERS = ('module.', '_orig_mod.')


def unwrap(checkpoint: Any) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, bare or under ``'state_dict'`` or ``'model'``.

    Prefixes of wrappers (``module.`` of data parallelism, ``_orig_mod.`` of ``torch.compile``) are
    taken off.

    Args:
        checkpoint: As read from a file.

    Raises:
        ValueError: There is no state dict in it.

    Examples:
        >>> import torch
        >>> unwrap({'model': {'module.weight': torch.ones(2)}, 'epoch': 300})
        {'weight': tensor([1., 1.])}
    """
    inner = checkpoint
    while isinstance(inner, Mapping) and any(isinstance(inner.get(key), Mapping) for key in _KEYS):
        inner = next(inner[key] for key in _KEYS if isinstance(inner.get(key), Mapping))
    if not isinstance(inner, Mapping) or not inner:
        raise ValueError(f'no state dict in this checkpoint: it holds {_describe(checkpoint)}')
    wrong = [key for key, value in inner.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(
            f'no state dict in this checkpoint: entry {wrong[0]!r} is a '
            f'{type(inner[wrong[0]]).__name__}, not a tensor; it holds {_describe(checkpoint)}'
        )
    state_dict = dict(inner)
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in state_dict):
            state_dict = {name.removeprefix(prefix): t for name, t in state_dict.items()}
    return state_dict


def backbone_part(state_dict: StateDict) -> tuple[dict[str, Tensor], list[str]]:
    """Take a backbone out of a detector, segmentor or classifier of an mm library.

    Args:
        state_dict: State dict of a whole model (with names under ``backbone.``) or of a backbone.

    Returns:
        tuple: The backbone's state dict without the prefix, and the names outside it.

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
