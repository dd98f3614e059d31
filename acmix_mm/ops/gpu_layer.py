# SPDX-License-Identifier: Apache-2.0
"""The sliding-window ACmix layer as one operator, for NVIDIA GPUs.

It computes what :func:`~acmix_mm.ops.pointwise_conv`, :func:`~acmix_mm.ops.neighborhood_attention`
and :func:`~acmix_mm.ops.shift_conv` compute one after the other, with fewer kernels that read and
write less.
"""

from torch import Tensor

from .acmix_layer import parts_are_wanted
from .autocast import autocast_to_lower_precision
from .backends import triton
from .checks import check_pointwise_conv
from .torch_compat import autocast_dtype

MOST_MIXTURES = 64  # of maps that the kernels keep in registers
DEVICES = {'cuda'}  # types of devices on which layers ask whether it can run


def cannot_run(x: Tensor, *weights: Tensor) -> str | None:
    """Return why a layer runs its three operators instead, or None if it need not.

    Args:
        x: Input of the layer, ``(B, C_in, H, W)``.
        *weights: The other tensors of :func:`gpu_layer`.
    """
    if x.dim() != 4:
        return 'the first of its parts tells what is wrong with the input'
    if (reason := parts_are_wanted(x, *weights) or triton.cannot_run(x)) is not None:
        return reason
    mixtures = weights[2].shape[:2].numel()
    if mixtures > MOST_MIXTURES:
        return f'{mixtures} mixtures of maps are more than {MOST_MIXTURES}'
    if any(weight.device != x.device for weight in weights):
        return f'the weights must be on the device of the input, {x.device}'
    casts = autocast_dtype(x.device.type) is not None
    if not casts and any(weight.dtype != x.dtype for weight in weights):
        return f'without autocast the weights must have the dtype of the input, {x.dtype}'
    return triton.by_name_only()


@autocast_to_lower_precision(
    'qkv_weight', 'qkv_bias', 'fc_weight', 'kernel', 'beta', 'position', 'position_bias', 'alpha'
)
def gpu_layer(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    fc_weight: Tensor,
    kernel: Tensor,
    beta: Tensor,
    position: Tensor,
    position_bias: Tensor,
    alpha: Tensor,
    kernel_size: int,
    stride: int = 1,
    dilation: int = 1,
) -> Tensor:
    """``alpha * attention + beta * convolution`` of the same projections.

    The weights may be more precise than the input: they are multiplied with each other in their own
    precision.

    Args:
        x: ``(B, C_in, H, W)``.
        qkv_weight: ``(3 * C, C_in)``, of the projections to queries, keys and values.
        qkv_bias: ``(3 * C,)``.
        fc_weight: ``(P, k*k, 3 * N)``.
        kernel: ``(P * C, k*k, k, k)``.
        beta: ``(1,)``, weight of the convolution path.
        position: ``(D, 2)``, what a step along x and y, of which the map has 2, adds to what is
            subtracted from the keys. D channels a head.
        position_bias: ``(D,)``, which has no effect: it adds the same to all logits of a query.
        alpha: ``(1,)``, weight of the attention path.
        kernel_size: Side of the attention window in pixels, odd.
        stride: Stride of both paths in pixels. Default: 1.
        dilation: Dilation of the window and of the convolution in pixels. Default: 1.

    Returns:
        Tensor: ``(B, C, ceil(H / stride), ceil(W / stride))``.

    Raises:
        ValueError: The shapes of x and of the projections do not fit.
    """
    check_pointwise_conv(x, qkv_weight, qkv_bias, chunks=3)
    return triton.acmix_layer(
        x, qkv_weight, qkv_bias, fc_weight, kernel, beta, position, position_bias, alpha,
        kernel_size=kernel_size, stride=stride, dilation=dilation,
    )  # fmt: skip
