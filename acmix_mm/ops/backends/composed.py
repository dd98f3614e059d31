# SPDX-License-Identifier: Apache-2.0
"""The shift-convolution path as one grouped convolution.

The fully connected layer and the shifting convolution are both linear, so their small weights are
multiplied first; the k_c^2 intermediate maps never exist.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..projection import Projection, complete_maps
from ..size_cache import cached_per_size


def compose(fc_weight: Tensor, kernel: Tensor) -> Tensor:
    """One layer for both: (P, k*k, M) and (P, C, k*k, k, k) -> (C, M, k, k)."""
    # Contiguous, or torch 2.13 gets the weight's gradient wrong where oneDNN does not run (float64)
    # and a single image comes with its channels innermost.
    return torch.einsum('pcihw,pim->cmhw', kernel, fc_weight).contiguous()


def compose_bias(fc_bias: Tensor, kernel: Tensor) -> Tensor:
    """What the bias adds for each kernel position inside the map: (P, k*k) -> (C, k, k)."""
    return torch.einsum('pcihw,pi->chw', kernel, fc_bias)


def border_bias(offset: Tensor, size: Sequence[int], stride: int, dilation: int) -> Tensor:
    """Sum the offsets of the kernel positions inside the map: (C, k, k) -> (C, H_out, W_out).

    Args:
        offset: What each kernel position adds where it lies inside the map.
        size: H and W of the map.
        stride: Stride of the convolution in pixels.
        dilation: Dilation of the convolution in pixels.
    """
    rows, columns = (
        _positions_inside(offset.shape[-1], length, stride, dilation, offset.dtype, offset.device)
        for length in size
    )
    return torch.einsum('chw,hy,wx->cyx', offset, rows, columns)


@cached_per_size
def _positions_inside(
    kernel_size: int,
    length: int,
    stride: int,
    dilation: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """1 where a position of the kernel lies inside the map, else 0, along one axis.

    Returns:
        Tensor: ``(kernel_size, ceil(length / stride))``.
    """
    steps = dilation * (torch.arange(kernel_size, device=device) - kernel_size // 2)
    pixels = steps[:, None] + torch.arange(0, length, stride, device=device)
    return ((pixels >= 0) & (pixels < length)).to(dtype)


def shift_conv(
    maps: Sequence[Tensor],
    fc_weight: Tensor,
    fc_bias: Tensor | None,
    kernel: Tensor,
    stride: int,
    dilation: int,
    projection: Projection | None = None,
) -> Tensor:
    """See :func:`acmix_mm.ops.shift_conv`."""
    maps = complete_maps(maps, projection, fc_weight.shape[-1])
    stacked = maps[0] if len(maps) == 1 else torch.cat([*maps], 1)
    groups = stacked.shape[2]
    padding = dilation * (int(kernel.shape[-1]) // 2)  # a tensor while torch.jit traces
    weight = compose(fc_weight, kernel).to(stacked.dtype)
    maps_of_groups = stacked.transpose(1, 2).flatten(1, 2)
    out = F.conv2d(maps_of_groups, weight, None, stride, padding, dilation, groups)
    if fc_bias is None:
        return out
    # The bias is added before the zero padding: outside the map there is none.
    bias = border_bias(compose_bias(fc_bias, kernel), stacked.shape[3:], stride, dilation)
    return out + bias.to(out.dtype)


def cannot_run(*_: Any) -> str | None:
    """Return None: a grouped convolution runs wherever torch does."""
    return None
