# SPDX-License-Identifier: Apache-2.0
"""The shift-convolution path as one dense convolution of the layer's input.

Projection, fully connected layer and shifting convolution are all linear, so their small weights
are multiplied to those of the ``k_c x k_c`` convolution that ACmix replaces. It has more
multiply-adds than a grouped convolution of queries, keys and values, but it is the one for which
libraries for GPUs have their fastest kernels, forward and backward, in every memory format.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..projection import Projection
from .composed import border_bias, compose_bias


def compose_from_input(
    projection: Projection, fc_weight: Tensor, fc_bias: Tensor | None, kernel: Tensor
) -> tuple[Tensor, Tensor | None]:
    """One layer for all three.

    Returns:
        tuple[Tensor, Tensor | None]: Weight ``(C, C_in, k, k)``, and what the biases add for each
        kernel position that lies inside the map, ``(C, k, k)``, or None without biases.
    """
    x, weight, bias = projection
    channels, size = len(weight) // fc_weight.shape[-1], kernel.shape[-1]
    # (C, k, k, M), and then as many rows for each channel of a map.
    composed = kernel.permute(1, 3, 4, 0, 2).flatten(3) @ fc_weight.flatten(0, 1)
    rows = composed.view(channels, -1, fc_weight.shape[-1])
    # Maps come first in the rows of the projection.
    weight = rows @ weight.unflatten(0, (-1, channels)).transpose(0, 1)
    weight = weight.view(len(composed), size, size, -1).permute(0, 3, 1, 2)
    offset = None
    if bias is not None:
        by_channel = bias.view(-1, channels, 1).transpose(0, 1)
        offset = (rows @ by_channel).view(-1, size, size)
    if fc_bias is not None:
        fc_offset = compose_bias(fc_bias, kernel)
        offset = fc_offset if offset is None else offset + fc_offset
    # As it is, its input channels are innermost, which suits x if those of x are.
    return weight if x.stride(1) == 1 else weight.contiguous(), offset


def shift_conv(
    maps: Sequence[Tensor],
    fc_weight: Tensor,
    fc_bias: Tensor | None,
    kernel: Tensor,
    stride: int,
    dilation: int,
    projection: Projection,
) -> Tensor:
    """See :func:`acmix_mm.ops.shift_conv`."""
    weight, offset = compose_from_input(projection, fc_weight, fc_bias, kernel)
    return convolve(projection.x.to(maps[0].dtype), weight, offset, stride, dilation)


def convolve(
    x: Tensor, weight: Tensor, offset: Tensor | None, stride: int, dilation: int
) -> Tensor:
    """Convolve x, in its precision, with what :func:`compose_from_input` returns."""
    padding = dilation * (int(weight.shape[-1]) // 2)  # a tensor while torch.jit traces
    out = F.conv2d(x, weight.to(x.dtype), None, stride, padding, dilation)
    if offset is None:
        return out
    return out + border_bias(offset, x.shape[2:], stride, dilation).to(out.dtype)


def cannot_run(*arguments: Any) -> str | None:
    """Return why the path cannot start from the input of the layer, or None if it can."""
    if arguments[-1] is None:
        return 'it needs the projection that the maps come from'
    return None


def by_name_only(maps: Sequence[Tensor], *_: Any) -> str | None:
    """Return why automatic choice does not take this backend, or None if it does."""
    on_cpu = maps[0].device.type == 'cpu'
    return (
        'on CPUs a grouped convolution, which has fewer multiply-adds, is faster'
        if on_cpu
        else None
    )
