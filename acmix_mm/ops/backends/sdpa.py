# SPDX-License-Identifier: Apache-2.0
"""Attention in windows by ``F.scaled_dot_product_attention``, which is fused on every device."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import scaled_dot_product_attention
from ..transforms import transforms_active


def window_attention(
    qkv: Tensor,
    bias: Tensor,
    window_size: int,
    masks: tuple[Tensor, Tensor] | None,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """See :func:`acmix_mm.ops.window_attention`."""
    rows, columns = (length // window_size for length in qkv.shape[1:3])
    qkv = qkv.unflatten(1, (rows, -1)).unflatten(3, (columns, -1))
    bias = bias.unflatten(-1, (window_size,) * 2).unflatten(-3, (window_size,) * 2)
    attend = partial(_attention, dropout_p=dropout_p, scale=scale)
    if masks is None:
        return _attend_windows(attend, qkv, bias).flatten(3, 4).flatten(1, 2)
    # The rows of windows without masks share the biases of one row: a bias for each window would
    # take more memory than the map.
    row_masks, column_masks = masks
    last, last_columns = row_masks.shape[0], column_masks.shape[0]  # `len` would fix open sizes
    if last_columns < columns:
        column_masks = F.pad(column_masks, (0, 0, 0, 0, columns - last_columns, 0))
    bias = bias + column_masks[:, None, None, :, None, :]
    last_bias = bias + row_masks[:, None, None, :, None, :, None]
    parts = [_attend_windows(attend, qkv[:, rows - last :], last_bias)]
    if rows > last:
        parts.insert(0, _attend_windows(attend, qkv[:, : rows - last], bias))
    return torch.cat(parts, 1).flatten(3, 4).flatten(1, 2)


def cannot_run(*_: Any) -> str | None:
    """Return None: every device has ``F.scaled_dot_product_attention``."""
    return None


def _attend_windows(attend: Callable[..., Tensor], qkv: Tensor, bias: Tensor) -> Tensor:
    """Attention in windows.

    Args:
        attend: Attention of queries, keys and values with a bias, of four axes each.
        qkv: ``(B, rows, M, columns, M, 3, N, D)``.
        bias: Summand of the logits, ``(N, M, M, M, M)``, after axes for the columns, or the rows
            and columns, of windows if it depends on them.

    Returns:
        Tensor: ``(B, rows, M, columns, M, N, D)``.
    """
    rows, side, columns = qkv.shape[1:4]
    heads, channels = qkv.shape[6:]
    qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6)  # 3, B, rows, columns, N, pixels, D
    bias = bias.flatten(-2).flatten(-3, -2)
    # The fused kernels take four axes: those of the bias are the heads, the others the batch.
    q, k, v = qkv.flatten(1, 6 - bias.dim()).flatten(2, -3).unbind()
    out = attend(q, k, v, bias.flatten(0, -3).unsqueeze(0))
    out = out.reshape(-1, rows, columns, heads, side, side, channels)
    return out.permute(0, 1, 4, 2, 5, 3, 6)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout_p: float, scale: float
) -> Tensor:
    """Compute attention of four-dimensional tensors by a fused kernel wherever torch has one.

    On CPUs no fused kernel of torch 2.13 differentiates the bias. Its fallback makes more passes
    over the logits than the formula below, because it guards against fully masked rows; there are
    none here, since a pixel always sees itself.
    """
    learned = torch.is_grad_enabled() and bias.requires_grad
    if q.device.type == 'cpu' and learned and not transforms_active():
        logits = scale * q @ k.transpose(-2, -1)
        logits += bias
        return F.dropout(logits.softmax(-1), dropout_p) @ v
    return scaled_dot_product_attention(q, k, v, bias, dropout_p, scale)
