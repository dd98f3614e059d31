# SPDX-License-Identifier: Apache-2.0
"""Reflection padding for maps of any size."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .open_sizes import sizes_are_open


def reflect_indices(size: int, padding: int, device: torch.device | None = None) -> Tensor:
    """Positions that a reflection-padded axis reads, as ``numpy.pad(mode='reflect')`` does.

    Args:
        size: Length of the axis, at least 1. A single element repeats itself.
        padding: Elements added on each side; may exceed ``size``, the reflection then goes on
            back and forth.
        device: Device on which the indices are made.

    Returns:
        Tensor: int64 of shape ``(size + 2 * padding,)``.

    Examples:
        >>> reflect_indices(3, 4).tolist()
        [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]
    """
    return reflect(torch.arange(-padding, size + padding, device=device), size)


def reflect(index: Tensor, size: int) -> Tensor:
    """Bring positions beyond the ends of an axis back into it by reflection.

    Args:
        index: Positions of any integer type and shape.
        size: Length of the axis, at least 1. A single element repeats itself.

    Returns:
        Tensor: Positions from 0 to ``size - 1``, of the shape of ``index``.

    Examples:
        >>> reflect(torch.tensor([-2, 0, 5]), 4).tolist()
        [2, 0, 1]
    """
    last = size - 1
    # A tensor, so that a graph that is recorded for maps of open size is right for a size of 1.
    period = torch.full((), 2 * last, dtype=index.dtype, device=index.device).clamp(min=1)
    index = index.remainder(period)
    return torch.where(index > last, 2 * last - index, index)


def reflect_pad2d(x: Tensor, padding: int) -> Tensor:
    """Reflection-pad the last two axes by ``padding`` pixels on each side.

    The pixels are gathered where ``F.pad`` cannot reflect: it refuses a map that is not larger than
    its padding, which the deep stages of a detector meet on small images, and its gradient on GPUs
    is refused under :func:`torch.use_deterministic_algorithms`.

    Args:
        x: ``(B, C, H, W)`` with H, W >= 1.
        padding: Pixels on each side, >= 0.

    Returns:
        Tensor: ``(B, C, H + 2 * padding, W + 2 * padding)``.

    Examples:
        >>> reflect_pad2d(torch.arange(3.).view(1, 1, 1, 3), 1)[0, 0, 0].tolist()
        [1.0, 0.0, 1.0, 2.0, 1.0]
    """
    if padding == 0:
        return x
    height, width = x.shape[-2:]
    gather = sizes_are_open((height, width)) or torch.are_deterministic_algorithms_enabled()
    if not gather and padding < height and padding < width:
        return F.pad(x, (padding,) * 4, mode='reflect')
    rows = reflect_indices(height, padding, x.device)
    columns = reflect_indices(width, padding, x.device)
    return x.index_select(-2, rows).index_select(-1, columns)
