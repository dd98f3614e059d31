# SPDX-License-Identifier: Apache-2.0
"""``dict(type='ACmix')``: ACmix with the signature of a convolution."""

from collections.abc import Sequence
from typing import Any, Literal

from mmengine.utils import to_2tuple
from torch import nn

from ..ops.checks import check_odd
from ..registry import MODELS
from .acmix import ACmix

# Arguments of deformable convolutions, which a config inherits if it only replaces their type.
_OF_DEFORMABLE = {'deform_groups', 'deformable_groups', 'fallback_on_stride', 'im2col_step'}


@MODELS.register_module('ACmix')
def acmix_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | Literal['same', 'valid'] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    bias: bool = True,
    grouped: Literal['error', 'conv'] = 'error',
    **acmix: Any,
) -> nn.Module:
    """Build an ACmix layer, or a plain convolution, from the arguments of a convolution.

    This function is what ``dict(type='ACmix')`` names in ``conv_cfg``, ``dcn`` and
    ``MODELS.build``. A 1x1 request gives a plain 1x1 convolution: it has no neighborhood to mix.
    With ``grouped='conv'`` a request with groups gives a plain convolution, too.

    Args:
        in_channels: Number C_in of input channels.
        out_channels: Number C_out of output channels.
        kernel_size: Side k of the convolution path's kernel in pixels, the same in height and
            width, odd.
        stride: Stride in pixels, the same in height and width. Default: 1.
        padding: Padding in pixels. It must keep the size of the map, that is, be
            ``dilation * (k // 2)``, or ``'same'`` without a stride. Default: 0 (``'valid'``), as in
            a convolution, which fits 1x1 requests only.
        dilation: Dilation in pixels, the same in height and width. Default: 1.
        groups: Number of groups of a plain convolution; ACmix mixes all channels. Default: 1.
        bias: Whether a plain convolution has a bias. ACmix always has biases in its projections.
            Default: True.
        grouped: What a request with more than 1 group gives, other than a 1x1 one: ``'error'``
            (default) or ``'conv'``, a plain convolution, for networks that have both kinds such as
            those with depthwise convolutions.
        **acmix: Other arguments of :class:`ACmix`, such as ``kernel_att`` and ``num_heads``.

    Returns:
        nn.Module: Maps ``(B, C_in, H, W)`` to ``(B, C_out, ceil(H / stride), ceil(W / stride))``.

    Raises:
        ValueError: The requested convolution cannot be an ACmix layer, or ``grouped`` is unknown.
        TypeError: An argument of deformable convolutions is given, or ``kernel_conv``, whose name
            is ``kernel_size`` in this signature.

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
    for name in sorted(acmix.keys() & _OF_DEFORMABLE):
        raise TypeError(
            f"dict(type='ACmix') does not take {name}={acmix[name]!r}, an argument of deformable "
            "convolutions. If it comes from a base config, replace that config's dict: "
            "dict(_delete_=True, type='ACmix')"
        )
    if grouped not in ('error', 'conv'):
        raise ValueError(f"dict(type='ACmix'): grouped must be 'error' or 'conv', got {grouped!r}")
    if set(to_2tuple(kernel_size)) == {1} or (groups != 1 and grouped == 'conv'):
        geometry: Any = dict(
            kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation
        )
        pairs = {name: to_2tuple(value) for name, value in geometry.items()}
        return nn.Conv2d(in_channels, out_channels, **pairs, groups=groups, bias=bias)
    kernel_size = _square('kernel_size', kernel_size)
    stride, dilation = _square('stride', stride), _square('dilation', dilation)
    if groups != 1:
        raise ValueError(
            f'ACmix cannot be a convolution of {groups} groups: its projections mix all channels. '
            "dict(type='ACmix', grouped='conv') keeps plain convolutions there."
        )
    check_odd(of='ACmix', kernel_size=kernel_size)
    same_size = dilation * (kernel_size // 2)
    if padding == 'same' and stride == 1:  # with a stride nn.Conv2d refuses it, too
        padding = same_size
    if isinstance(padding, str) or _square('padding', padding) != same_size:
        raise ValueError(
            f'ACmix keeps the size of the map: with kernel_size={kernel_size} and '
            f'dilation={dilation} the padding must be {same_size}, got {padding!r}'
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
    if len(value) > 2 or len(set(value)) != 1:
        raise ValueError(f'{name} of ACmix must be the same in height and width, got {value}')
    return value[0]
