# SPDX-License-Identifier: Apache-2.0
"""The aggregation of patch-wise self-attention as a sum of shifted maps, one at a time.

Nothing larger than the weights is ever held.
"""

from itertools import product
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..padding import reflect_pad2d
from ..transforms import transforms_active


def neighborhood_aggregation(weights: Tensor, v: Tensor, kernel_size: int) -> Tensor:
    """See :func:`acmix_mm.ops.neighborhood_aggregation`."""
    v = reflect_pad2d(v, kernel_size // 2).unflatten(1, (-1, weights.shape[1]))
    aggregate = _aggregate if transforms_active() else _Aggregation.apply
    return aggregate(weights.unsqueeze(1), v).flatten(1, 2)


def cannot_run(*_: Any) -> str | None:
    """Return None: the sum runs wherever torch does."""
    return None


def _aggregate(weights: Tensor, v: Tensor) -> Tensor:
    """(B, 1, G, K * K, H, W) and padded (B, S, G, H + K - 1, W + K - 1) to (B, S, G, H, W)."""
    (weight, window), *others = _positions(weights, v)
    out = (weight.to(_sum_dtype(v)) * window).contiguous()
    for weight, window in others:
        out.addcmul_(weight, window)
    return out.to(v.dtype)


class _Aggregation(torch.autograd.Function):
    """:func:`_aggregate` with its backward pass by hand.

    Autograd would make a full-size gradient of v for each of the K * K windows.
    """

    @staticmethod
    def forward(weights: Tensor, v: Tensor) -> Tensor:
        return _aggregate(weights, v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        weights, v = ctx.saved_tensors
        grad_weights, grad_v = torch.empty_like(weights), torch.zeros_like(v, dtype=_sum_dtype(v))
        positions = zip(_positions(weights, v), _positions(grad_weights, grad_v), strict=True)
        for (weight, window), (grad_weight, grad_window) in positions:
            grad_weight.copy_((grad * window).sum(1, keepdim=True))
            grad_window.addcmul_(weight, grad)
        return grad_weights, grad_v.to(v.dtype)


def _sum_dtype(x: Tensor) -> torch.dtype:
    """Half precision is summed in single precision."""
    return torch.promote_types(x.dtype, torch.float32)


def _positions(weights: Tensor, v: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The weights of each window position and the pixels of v there, as views."""
    positions, height, width = weights.shape[-3:]
    corners = product(range(isqrt(positions)), repeat=2)
    windows = [v[..., y : y + height, x : x + width] for y, x in corners]
    return list(zip(weights.unbind(-3), windows, strict=True))
