# SPDX-License-Identifier: Apache-2.0
"""Convolution paths as plain convolutions, for inference and export."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..ops import Projection
from ..ops.backends.dense import compose_from_input, convolve
from .projection import is_known_by_weights
from .shift_conv import ShiftConv

M = TypeVar('M', bound=nn.Module)


def merge_convolutions(model: M) -> M:
    """Replace the convolution path of every ACmix layer, in place, by one convolution of its input.

    From the input of a layer on, its projection, the fully connected layer, the shifts and the
    weight beta are linear. Their product is the ``k x k`` convolution that ACmix replaces. It can
    no longer be trained, and the model's state dict no longer fits an unmerged model.

    The output is the same but for rounding. Whether it takes less time depends on the device. On
    NVIDIA GPUs, a merged :class:`ACmix` is no longer one operator, which reads and writes less.

    Args:
        model: An ACmix layer, or a network with such layers, with its final weights.

    Returns:
        nn.Module: The same model.

    Raises:
        ValueError: There is no ACmix layer with a convolution path in the model, or another module
            has taken the place of a layer's projection.

    Examples:
        >>> from acmix_mm.layers import ACmix
        >>> layer, x = ACmix(8, 8).double(), torch.rand(1, 8, 5, 6).double()
        >>> expected = layer(x)
        >>> torch.allclose(merge_convolutions(layer)(x), expected)
        True
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(getattr(layer, 'shift_conv', None), ShiftConv)
    }
    if not layers:
        raise ValueError('the model has no ACmix layer with a convolution path to merge')
    for name, layer in layers.items():
        if not is_known_by_weights(layer.qkv):
            raise ValueError(
                f'the convolution path of {name or "the layer"!r} cannot be merged: its projection '
                f'qkv must be a plain linear layer without hooks, got {type(layer.qkv).__name__}'
            )
    for layer in layers.values():
        layer.shift_conv = _MergedConv(layer.shift_conv, layer.qkv, layer.mix.convolution_weight())
    return model


class _MergedConv(nn.Module):
    """Stands in the place of a :class:`ShiftConv`, and takes its arguments."""

    weight: Tensor
    offset: Tensor | None

    def __init__(
        self, conv: ShiftConv, linear: nn.Linear | nn.Conv2d, beta: Tensor | float
    ) -> None:
        super().__init__()
        self.stride, self.dilation = conv.stride, conv.dilation
        with torch.no_grad():
            fc_weight, fc_bias, kernel = conv.weighed(beta)
            projection = Projection(torch.empty(0, 0, 0, 0), linear.weight.flatten(1), linear.bias)
            weight, offset = compose_from_input(projection, fc_weight, fc_bias, kernel)
        self.register_buffer('weight', weight.contiguous())
        self.register_buffer('offset', offset)

    def forward(
        self,
        maps: Tensor | Sequence[Tensor],
        weight: Tensor | float,
        x: Tensor,
        projection: nn.Module,
    ) -> Tensor:
        """(B, C_in, H, W) -> (B, C, ceil(H / stride), ceil(W / stride))."""
        return convolve(x, self.weight, self.offset, self.stride, self.dilation)

    def extra_repr(self) -> str:
        """Return the shape and the options as ``print(module)`` shows them."""
        return f'{tuple(self.weight.shape)}, stride={self.stride}, dilation={self.dilation}'
