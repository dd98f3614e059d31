# SPDX-License-Identifier: Apache-2.0
"""``dict(type='ACmix')``: ACmix with the signature of a convolution."""

from collections.abc import Sequence
from typing import Any

from mmengine.utils import to_2tuple
from torch import nn

from ..ops.checks import check_odd
from ..registry import MODELS
from .acmix import ACmix


@MODELS.register_module('ACmix')
def acmix_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    bias: bool = True,
    **acmix: Any,
) -> nn.Module:
    """Build an ACmix layer, or a plain 1x1 convolution, from the arguments of a convolution.

    This function is what ``dict(type='ACmix')`` names in ``conv_cfg``, ``dcn`` and
    ``MODELS.build``. A 1x1 request gives a plain 1x1 convolution: it has no neighbourhood to mix.

    Args:
        in_channels: Number C_in of input channels.
        out_channels: Number C_out of output channels.
        kernel_size: Side k of the convolution path's kernel in pixels, the same in height and
            width, odd.
        stride: Stride in pixels, the same in height and width. Default: 1.
        padding: Padding in pixels. It must keep the size of the map, that is, be
            ``dilation * (k // 2)``. Default: 0, as in a convolution, which fits 1x1 requests only.
        dilation: Dilation in pixels, the same in height and width. Default: 1.
        groups: Must be 1 unless the request is 1x1. Default: 1.
        bias: Whether a 1x1 convolution has a bias. ACmix always has biases in its projections.
            Default: True.
        **acmix: Other arguments of :class:`ACmix`, such as ``kernel_att`` and ``num_heads``.

    Returns:
        nn.Module: Maps ``(B, C_in, H, W)`` to ``(B, C_out, ceil(H / stride), ceil(W / stride))``.

    Raises:
        ValueError: The requested convolution cannot be an ACmix layer.
        TypeError: ``kernel_conv`` is given; in this signature its name is ``kernel_size``.

    Examples:
        >>> from mmcv.cnn import build_conv_layer
        >>> cfg = dict(type='ACmix', num_heads=2)
        >>> type(build_conv_layer(cfg, 64, 64, 3, padding=1)).__name__
        'ACmix'
    """
    if 'kernel_conv' in acmix:
        raise TypeError(
            f"dict(type='ACmix') has the signature of a convolution: write kernel_size="
            f'{acmix["kernel_conv"]!r} instead of kernel_conv'
        )
    kernel_size = _square('kernel_size', kernel_size)
    if kernel_size == 1:
        geometry: Any = dict(stride=stride, padding=padding, dilation=dilation)
        pairs = {name: to_2tuple(value) for name, value in geometry.items()}
        return nn.Conv2d(in_channels, out_channels, 1, **pairs, groups=groups, bias=bias)
    stride, dilation = _square('stride', stride), _square('dilation', dilation)
    if groups != 1:
        raise ValueError(
            f'ACmix cannot be a convolution of {groups} groups: its projections mix all channels. '
            'Use conv_cfg=None for grouped (ResNeXt-like) convolutions.'
        )
    check_odd(of='ACmix', kernel_size=kernel_size)
    same_size = dilation * (kernel_size // 2)
    if _square('padding', padding) != same_size:
        raise ValueError(
            f'ACmix keeps the size of the map: with kernel_size={kernel_size} and '
            f'dilation={dilation} the padding must be {same_size}, got {padding}'
        )
    return ACmix(
        in_channels,
        out_channels,
        kernel_conv=kernel_size,
        stride=stride,
        dilation=dilation,
        **acmix,
    )


def _square(name: str, value: int | Sequence[int]) -> int:
    """Return the number that a size of a convolution is in both height and width."""
    if not isinstance(value, Sequence):
        return value
    if len(set(value)) != 1:
        raise ValueError(f'{name} of ACmix must be the same in height and width, got {value}')
    return value[0]
