# SPDX-License-Identifier: Apache-2.0
"""The 1x1 projections to queries, keys and values."""

from typing import TypeGuard

from torch import Tensor, nn

from ..ops import pointwise_conv

_HOOKS = (
    '_forward_pre_hooks',
    '_forward_hooks',
    '_backward_pre_hooks',
    '_backward_hooks',
)


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution that returns its result in chunks, see :func:`acmix_mm.ops.pointwise_conv`.

    Args:
        in_channels: Number C_in of input channels.
        out_channels: Number C_out of output channels, a multiple of ``chunks``.
        chunks: Number of results. Default: 1.

    Examples:
        >>> import torch
        >>> q, k, v = PointwiseConv(3, 24, chunks=3)(torch.rand(2, 3, 5, 6))
        >>> q.shape
        torch.Size([2, 8, 5, 6])
    """

    bias: nn.Parameter

    def __init__(self, in_channels: int, out_channels: int, chunks: int = 1) -> None:
        super().__init__(in_channels, out_channels, 1)
        self.chunks = chunks

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """(B, C_in, H, W) -> ``chunks`` tensors (B, C_out / chunks, H, W)."""
        return pointwise_conv(x, self.weight.flatten(1), self.bias, self.chunks)


def is_known_by_weights(linear: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Return whether a layer's linear map computes what its weights say, and nothing else.

    It may not if another module, such as an adapter or a quantized layer, has been put in its
    place, or if hooks, such as those of ``torch.nn.utils.weight_norm``, or a replaced ``forward``
    may change its input, its weights or its output.

    Args:
        linear: The map, or what stands in its place.

    Examples:
        >>> is_known_by_weights(nn.Conv2d(4, 12, 1))
        True
        >>> is_known_by_weights(nn.Sequential(nn.Conv2d(4, 12, 1)))
        False
    """
    return (
        type(linear) in (nn.Linear, nn.Conv2d, PointwiseConv)
        and type(linear.weight) in (nn.Parameter, Tensor)
        and 'forward' not in vars(linear)
        and not any(getattr(linear, hooks) for hooks in _HOOKS)
    )
