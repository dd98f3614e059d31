# SPDX-License-Identifier: Apache-2.0
"""Checks of the arguments of operators and layers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .projection import Projection


def check_odd(*, of: str = '', **sizes: int) -> None:
    """Raise ValueError unless every size is a positive odd integer.

    Args:
        of: Name of the operator or layer, for the message.
        **sizes: Values by the names of the arguments.

    Examples:
        >>> check_odd(of='ACmix', kernel_att=6)
        Traceback (most recent call last):
        ...
        ValueError: ACmix: kernel_att must be a positive odd integer, got 6
    """
    for name, value in sizes.items():
        if not _is_positive(value) or value % 2 == 0:
            raise ValueError(f'{_where(of)}{name} must be a positive odd integer, got {value!r}')


def check_positive(*, of: str = '', **sizes: int) -> None:
    """Raise ValueError unless every size is a positive integer, see :func:`check_odd`."""
    for name, value in sizes.items():
        if not _is_positive(value):
            raise ValueError(f'{_where(of)}{name} must be a positive integer, got {value!r}')


def _is_positive(value: Any) -> bool:
    """Tell whether a value is an integer, of Python or NumPy or symbolic, above 0."""
    return hasattr(value, '__index__') and not isinstance(value, bool | Tensor) and value > 0


def _where(of: str) -> str:
    return f'{of}: ' if of else ''


def _check_alike(op: str, **tensors: Tensor) -> None:
    """Raise TypeError unless all tensors are floating point, of one dtype and on one device."""
    (first, reference), *_ = tensors.items()
    if not reference.is_floating_point():
        raise TypeError(f'{op}: {first} must be a floating-point tensor, got {reference.dtype}')
    for name, tensor in tensors.items():
        for what in ('dtype', 'device'):
            if getattr(tensor, what) != getattr(reference, what):
                raise TypeError(
                    f'{op}: {name} and {first} must have the same {what}, '
                    f'got {getattr(tensor, what)} and {getattr(reference, what)}'
                )


def check_neighborhood_attention(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, stride: int, dilation: int
) -> None:
    """Raise ValueError or TypeError unless the arguments fit together."""
    op = 'neighborhood_attention'
    check_odd(of=op, kernel_size=kernel_size)
    check_positive(of=op, stride=stride, dilation=dilation)
    _check_alike(op, q=q, k=k, v=v)
    if k.dim() != 5 or 0 in k.shape[1:]:
        raise ValueError(f'{op}: k must be a non-empty (B, N, D, H, W), got {tuple(k.shape)}')
    if v.shape != k.shape:
        raise ValueError(
            f'{op}: v must have the shape of k, got {tuple(v.shape)} and {tuple(k.shape)}'
        )
    # Written as torch does for slices: torch.export must find both equal for sizes left open.
    expected = (*k.shape[:3], *((size + stride - 1) // stride for size in k.shape[3:]))
    if q.shape != expected:
        raise ValueError(
            f'{op}: with k of shape {tuple(k.shape)} and stride {stride}, q must have shape '
            f'{expected} (one query per window), got {tuple(q.shape)}'
        )


def check_neighborhood_aggregation(weights: Tensor, v: Tensor, kernel_size: int) -> None:
    """Raise ValueError or TypeError unless the arguments fit together."""
    op = 'neighborhood_aggregation'
    check_odd(of=op, kernel_size=kernel_size)
    _check_alike(op, weights=weights, v=v)
    if v.dim() != 4 or 0 in v.shape[1:]:
        raise ValueError(f'{op}: v must be a non-empty (B, C, H, W), got {tuple(v.shape)}')
    batch_size, channels, height, width = v.shape
    groups = weights.shape[1] if weights.dim() == 5 else 0
    expected = (batch_size, groups, kernel_size**2, height, width)
    if groups == 0 or weights.shape != expected or channels % groups:
        raise ValueError(
            f'{op}: with v of shape {tuple(v.shape)} and kernel_size={kernel_size}, weights must '
            f'have shape ({batch_size}, G, {kernel_size**2}, {height}, {width}) with G a divisor '
            f'of {channels}, got {tuple(weights.shape)}'
        )


def check_window_attention(
    qkv: Tensor, bias: Tensor, window_size: int, masks: tuple[Tensor, Tensor] | None
) -> None:
    """Raise ValueError or TypeError unless the arguments fit together."""
    op = 'window_attention'
    check_positive(of=op, window_size=window_size)
    named = {} if masks is None else dict(zip(('row_masks', 'column_masks'), masks, strict=True))
    _check_alike(op, qkv=qkv, bias=bias, **named)
    fits = qkv.dim() == 6 and qkv.shape[3] == 3 and 0 not in qkv.shape[1:]
    if not fits or any(length % window_size for length in qkv.shape[1:3]):
        raise ValueError(
            f'{op}: qkv must be a non-empty (B, H, W, 3, N, D) with H and W multiples of '
            f'window_size={window_size}, got {tuple(qkv.shape)}'
        )
    expected = (qkv.shape[4], window_size**2, window_size**2)
    if bias.shape != expected:
        raise ValueError(f'{op}: bias must have shape {expected}, got {tuple(bias.shape)}')
    for (name, mask), length in zip(named.items(), qkv.shape[1:3], strict=False):
        most = length // window_size
        fits = mask.dim() == 3 and mask.shape[1:] == (window_size, window_size)
        if not fits or not 1 <= mask.shape[0] <= most:
            raise ValueError(
                f'{op}: {name} must be (A, {window_size}, {window_size}) with A from 1 to the '
                f'{most} windows along this axis, got {tuple(mask.shape)}'
            )


def check_pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor, chunks: int) -> None:
    """Raise ValueError or TypeError unless the arguments fit together."""
    op = 'pointwise_conv'
    check_positive(of=op, chunks=chunks)
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ValueError(f'{op}: x must be a non-empty (B, C_in, H, W), got {tuple(x.shape)}')
    outputs = len(weight) if weight.dim() == 2 and weight.shape[1] == x.shape[1] else 0
    if outputs == 0 or outputs % chunks:
        raise ValueError(
            f'{op}: weight must be (C_out, {x.shape[1]}) for x of shape {tuple(x.shape)}, with '
            f'C_out a multiple of chunks={chunks}, got {tuple(weight.shape)}'
        )
    if bias.shape != weight.shape[:1]:
        raise ValueError(f'{op}: bias must have shape ({len(weight)},), got {tuple(bias.shape)}')


def check_shift_conv(
    maps: Sequence[Tensor],
    fc_weight: Tensor,
    fc_bias: Tensor | None,
    kernel: Tensor,
    stride: int,
    dilation: int,
    projection: Projection | None = None,
) -> None:
    """Raise ValueError or TypeError unless the arguments fit together."""
    op = 'shift_conv'
    check_positive(of=op, stride=stride, dilation=dilation)
    shapes = [tuple(tensor.shape) for tensor in maps]
    if not maps or any(len(shape) != 5 or 0 in shape[1:] for shape in shapes):
        raise ValueError(f'{op}: maps must be a non-empty (B, M, G, H, W), got {_listed(shapes)}')
    # Lists, not a set: sizes that torch.export leaves open cannot be hashed.
    if any([shape[0], *shape[2:]] != [shapes[0][0], *shapes[0][2:]] for shape in shapes):
        raise ValueError(f'{op}: tensors of maps may differ in M only, got {_listed(shapes)}')
    _check_alike(op, **{f'maps[{i}]': tensor for i, tensor in enumerate(maps)})
    if kernel.dim() != 5 or kernel.shape[-1] != kernel.shape[-2]:
        raise ValueError(f'{op}: kernel must be (P, C, k*k, k, k), got {tuple(kernel.shape)}')
    groups = shapes[0][2]
    pairs, channels, _, _, size = kernel.shape
    check_odd(of=op, kernel_side=int(size))  # a tensor while torch.jit traces
    if kernel.shape[2] != size**2 or channels % groups:
        raise ValueError(
            f'{op}: kernel must be (P, C, k*k, k, k) with C divisible by the {groups} channels of '
            f'a map, got {tuple(kernel.shape)}'
        )
    num_maps = sum(shape[1] for shape in shapes)
    if projection is not None:
        num_maps = _check_projection(projection, shapes[0], num_maps)
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        'fc_weight': (fc_weight, (pairs, size**2, num_maps)),
    }
    if fc_bias is not None:
        expected['fc_bias'] = (fc_bias, (pairs, size**2))
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(
                f'{op}: {name} must have shape {shape} for {num_maps} maps and a kernel of shape '
                f'{tuple(kernel.shape)}, got {tuple(tensor.shape)}'
            )
    _check_weights(maps[0].dtype, kernel, fc_weight, fc_bias, projection)


def _check_projection(projection: Projection, shape: Sequence[int], given: int) -> int:
    """Return the number of maps that a projection makes.

    Args:
        projection: Where the maps come from.
        shape: Shape of a tensor of maps.
        given: Number of maps that are given.
    """
    op, (x, weight, bias) = 'shift_conv', projection
    batch_size, _, groups, *size = shape
    if x.dim() != 4 or [x.shape[0], *x.shape[2:]] != [batch_size, *size]:
        raise ValueError(
            f'{op}: projection.x must be (B, C_in, H, W) with B, H and W of the maps, '
            f'{(batch_size, *size)}, got {tuple(x.shape)}'
        )
    fits = weight.dim() == 2 and weight.shape[1] == x.shape[1] and len(weight) % groups == 0
    if not fits or len(weight) < given * groups:
        raise ValueError(
            f'{op}: projection.weight must be (M * {groups}, {x.shape[1]}) with M of at least the '
            f'{given} maps that are given, got {tuple(weight.shape)}'
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f'{op}: projection.bias must have shape ({len(weight)},), got {tuple(bias.shape)}'
        )
    return len(weight) // groups


def _check_weights(
    dtype: torch.dtype,
    kernel: Tensor,
    fc_weight: Tensor,
    fc_bias: Tensor | None,
    projection: Projection | None,
) -> None:
    """Raise TypeError unless the weights are alike and at least as precise as the maps."""
    weights = {'kernel': kernel, 'fc_weight': fc_weight, 'fc_bias': fc_bias}
    if projection is not None:
        weights |= {'projection.weight': projection.weight, 'projection.bias': projection.bias}
    op = 'shift_conv'
    _check_alike(op, **{name: weight for name, weight in weights.items() if weight is not None})
    if dtype != kernel.dtype != torch.promote_types(dtype, kernel.dtype):
        raise TypeError(
            f'{op}: the weights must have the dtype of the maps or a more precise one, got '
            f'{kernel.dtype} for maps of {dtype}'
        )


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return ', '.join(map(str, shapes)) or 'none'
