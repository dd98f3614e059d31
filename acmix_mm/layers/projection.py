# SPDX-License-Identifier: Apache-2.0
"""The 1x1 projections to queries, keys and values."""

from typing import TypeGuard

from torch import Tensor, nn

from ..ops import pointwise_conv
from ..ops.torch_compat import is_exporting

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
    place, if its weight is made by another tool, such as ``torch.nn.utils.weight_norm``, or if
    hooks or a replaced ``forward`` may change its input or output. Hooks while ``torch.export``
    records a graph are its own.

    Args:
        linear: The map, or what stands in its place.

    Examples:
        >>> is_known_by_weights(nn.Conv2d(4, 12, 1))
        True
        >>> is_known_by_weights(nn.Sequential(nn.Conv2d(4, 12, 1)))
        False
    """
    if type(linear) not in (nn.Linear, nn.Conv2d, PointwiseConv):
        return False
    changed = 'weight' not in linear._parameters or 'forward' in vars(linear)
    return not changed and not (is_hooked(linear) and not is_exporting())


def is_hooked(module: nn.Module) -> bool:
    """Return whether hooks may see or change the input or output of a module.

    Args:
        module: The module, without its submodules.

    Examples:
        >>> conv = nn.Conv2d(4, 12, 1)
        >>> hook = conv.register_forward_hook(print)
        >>> is_hooked(conv)
        True
    """
    return any(getattr(module, hooks) for hooks in _HOOKS)
