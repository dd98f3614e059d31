# SPDX-License-Identifier: Apache-2.0
"""The aggregation of patch-wise self-attention as a sum of shifted maps, one at a time.

Nothing larger than the weights is ever held.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..padding import reflect_pad2d


def neighborhood_aggregation(weights: Tensor, v: Tensor, kernel_size: int) -> Tensor:
    """See :func:`acmix_mm.ops.neighborhood_aggregation`."""
    v = reflect_pad2d(v, kernel_size // 2).unflatten(1, (-1, weights.shape[1]))
    return _Aggregation.apply(weights.unsqueeze(1), v).flatten(1, 2)


def cannot_run(*tensors: Tensor) -> str | None:
    """Return None: the sum runs wherever torch does."""
    return None


class _Aggregation(torch.autograd.Function):
    """(B, 1, G, K * K, H, W) and padded (B, S, G, H + K - 1, W + K - 1) to (B, S, G, H, W).

    By hand, because autograd would make a full-size gradient of v for each of the K * K windows.
    """

    @staticmethod
    def forward(weights: Tensor, v: Tensor) -> Tensor:
        out = v.new_zeros(*v.shape[:3], *weights.shape[-2:])
        for weight, window in _positions(weights, v):
            out.addcmul_(weight, window)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        weights, v = ctx.saved_tensors
        grad_weights, grad_v = torch.empty_like(weights), torch.zeros_like(v)
        positions = zip(_positions(weights, v), _positions(grad_weights, grad_v), strict=True)
        for (weight, window), (grad_weight, grad_window) in positions:
            grad_weight.copy_((grad * window).sum(1, keepdim=True))
            grad_window.addcmul_(weight, grad)
        return grad_weights, grad_v


def _positions(weights: Tensor, v: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The weights of each window position and the pixels of v there, as views."""
    positions, height, width = weights.shape[-3:]
    side = v.shape[-1] - width + 1
    corners = [divmod(position, side) for position in range(positions)]
    windows = [v[..., y : y + height, x : x + width] for y, x in corners]
    return list(zip(weights.unbind(-3), windows, strict=True))
