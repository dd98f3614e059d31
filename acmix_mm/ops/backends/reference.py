# SPDX-License-Identifier: Apache-2.0
"""The definitions of all operators: im2col and a full stack of k_c^2 maps, as published.

Every other backend is compared with this one. It is slow and keeps ``kernel_size ** 2`` copies of
the keys and values, so it is used only when it is requested by name.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..padding import reflect_pad2d
from ..projection import Projection, complete_maps


def neighborhood_attention(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, stride: int, dilation: int, scale: float
) -> Tensor:
    """See :func:`acmix_mm.ops.neighborhood_attention`."""
    k, v = (_windows(x, kernel_size, stride, dilation) for x in (k, v))
    logits = scale * (q.unsqueeze(3) * k).sum(2)  # (B, N, K*K, Ho, Wo)
    weights = logits.softmax(2).to(v.dtype)
    return (weights.unsqueeze(2) * v).sum(3)


def _windows(x: Tensor, kernel_size: int, stride: int, dilation: int) -> Tensor:
    """(B, N, D, H, W) -> (B, N, D, K*K, Ho, Wo), the reflection-padded window of each pixel."""
    height, width = (-(-size // stride) for size in x.shape[-2:])
    padded = reflect_pad2d(x.flatten(0, 1), dilation * (kernel_size // 2))
    steps = range(0, dilation * kernel_size, dilation)
    windows = [
        padded[..., top:, left:][..., ::stride, ::stride][..., :height, :width]
        for top in steps
        for left in steps
    ]
    return torch.stack(windows, 2).unflatten(0, x.shape[:2])


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
    stacked = torch.cat([*complete_maps(maps, projection, fc_weight.shape[-1])], 1)
    fc_weight, kernel = fc_weight.to(stacked.dtype), kernel.to(stacked.dtype)
    groups, size = stacked.shape[2], kernel.shape[-1]
    padding = dilation * (size // 2)
    outs = []
    for pair in range(len(fc_weight)):
        mixed = torch.einsum('im,bmghw->bgihw', fc_weight[pair], stacked)
        if fc_bias is not None:
            mixed = mixed + fc_bias[pair].view(1, 1, -1, 1, 1).to(mixed.dtype)
        mixed = mixed.flatten(1, 2)
        outs.append(F.conv2d(mixed, kernel[pair], None, stride, padding, dilation, groups))
    return torch.stack(outs).sum(0)


def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor, chunks: int) -> tuple[Tensor, ...]:
    """See :func:`acmix_mm.ops.pointwise_conv`."""
    return F.conv2d(x, weight[..., None, None], bias).chunk(chunks, 1)


def window_attention(
    qkv: Tensor,
    bias: Tensor,
    window_size: int,
    masks: tuple[Tensor, Tensor] | None,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """See :func:`acmix_mm.ops.window_attention`."""
    sides = (window_size, window_size)
    windows = qkv.unflatten(1, (-1, window_size)).unflatten(3, (-1, window_size))
    q, k, v = windows.unbind(5)  # (B, rows, M, columns, M, N, D)
    logits = scale * torch.einsum('brycxnd,bricjnd->brcnyxij', q, k)
    logits = logits + bias.unflatten(-1, sides).unflatten(-3, sides)
    if masks is not None:
        row_masks, column_masks = (
            F.pad(mask, (0, 0, 0, 0, count - mask.shape[0], 0))
            for mask, count in zip(masks, logits.shape[1:3], strict=True)
        )
        logits = logits + row_masks[:, None, None, :, None, :, None]
        logits = logits + column_masks[:, None, None, :, None, :]
    weights = F.dropout(logits.flatten(-2).softmax(-1), dropout_p).unflatten(-1, sides)
    out = torch.einsum('brcnyxij,bricjnd->brycxnd', weights.to(v.dtype), v)
    return out.flatten(3, 4).flatten(1, 2)


def neighborhood_aggregation(weights: Tensor, v: Tensor, kernel_size: int) -> Tensor:
    """See :func:`acmix_mm.ops.neighborhood_aggregation`."""
    windows = _windows(v.unflatten(1, (-1, weights.shape[1])), kernel_size, 1, 1)
    return (weights.unsqueeze(1) * windows).sum(3).flatten(1, 2)


def cannot_run(*_: Any) -> str | None:
    """Return None: the definitions run wherever torch does."""
    return None
