# SPDX-License-Identifier: Apache-2.0
"""The sliding-window ACmix layer as one operator, for CPUs.

It computes what :func:`~acmix_mm.ops.pointwise_conv`, :func:`~acmix_mm.ops.neighborhood_attention`
and :func:`~acmix_mm.ops.shift_conv` compute one after the other. Queries, keys and values exist for
a band of rows at a time, in the processor's cache. For the backward pass only the input, the
position map and one number for each query and head are kept; the rest is computed again.
"""

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from .backends import cpu
from .backends.registry import is_chosen_automatically
from .checks import check_pointwise_conv
from .open_sizes import is_exporting
from .torch_compat import autocast_dtype, is_compiling

PARTS = ('pointwise_conv', 'neighborhood_attention', 'shift_conv')
# Projecting again in the backward pass takes a third of the time of a 3x3 convolution. With more
# channels, whose maps are small, not keeping the projections saves less than that: measured with
# 256 and 512 channels, see docs/performance.md. A layer with a stride projects more pixels for each
# result, and is a little slower in training with fewer channels too. A network has few such layers,
# which keep the most.
MOST_CHANNELS_IN_TRAINING = 128
# A band of up to 9 rows reads as many rows above and below it as its windows reach. A thread
# projects all of them for its first band, and their gradients are kept until all bands are done.
MOST_REACH = 6
# A thread computes bands of all channels, of up to 9 rows of the result each. The three operators
# divide the channels among the threads as well: with few bands, they keep more cores busy.
ROWS_OF_A_BAND, FEWEST_BANDS = 9, 8


def cannot_fuse(
    reach: int, stride: int, x: Tensor, *parameters: Tensor, save_memory: bool = False
) -> str | None:
    """Return why a layer runs its three operators instead, or None if it need not.

    Nobody may have chosen their backends or want to see their calls: exporters, counters of FLOPs.

    Args:
        reach: Number of rows above and below a pixel that its window and its kernel cover.
        stride: Stride of the layer in pixels.
        x: Input of the layer, ``(B, C_in, H, W)``.
        *parameters: Parameters of the layer.
        save_memory: Whether wide layers, too, are to keep little for the backward pass although
            that is slower than to keep the projections. Default: False.
    """
    if x.dim() != 4:
        return 'the first of its parts tells what is wrong with the input'
    if reach > MOST_REACH:
        return f'it is slower and takes more memory with windows that reach over {MOST_REACH} rows'
    # Not while compiling, which would keep one graph for few bands and one for many.
    few = not is_compiling() and len(x) * -(-x.shape[2] // (stride * ROWS_OF_A_BAND)) < FEWEST_BANDS
    if few:
        return f'it has fewer than {FEWEST_BANDS} bands of rows to share among threads'
    tensors = (x, *parameters)
    if (reason := parts_are_wanted(*tensors)) is not None:
        return reason
    if autocast_dtype(x.device.type) is not None:
        return 'autocast casts the inputs of its parts'
    trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if trains and not save_memory and x.shape[1] > MOST_CHANNELS_IN_TRAINING:
        return f'training is slower with more than {MOST_CHANNELS_IN_TRAINING} channels'
    return cpu.cannot_run_in_one_precision(*tensors)


def parts_are_wanted(*tensors: Tensor) -> str | None:
    """Return why one operator would be noticed in the place of the three, or None if it is not."""
    if not all(is_chosen_automatically(operator) for operator in PARTS):
        return 'a backend of one of its parts was chosen'
    if is_exporting() or has_torch_function(tensors):
        return 'the calls of its parts are recorded'
    return None


def acmix_layer(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    position: Tensor,
    fc_weight: Tensor,
    kernel: Tensor,
    alpha: Tensor,
    kernel_size: int,
    stride: int = 1,
    dilation: int = 1,
) -> Tensor:
    """``alpha * attention + convolution`` of the same projections (Pan et al., CVPR 2022, Fig. 2c).

    Args:
        x: ``(B, C_in, H, W)``.
        qkv_weight: ``(3 * C, C_in)``, of the projections to queries, keys and values.
        qkv_bias: ``(3 * C,)``.
        position: ``(D, H, W)``, subtracted from the keys of the attention, D channels a head.
        fc_weight: ``(P, k*k, 3 * N)``, times the weight of the convolution path.
        kernel: ``(P, C, k*k, k, k)``.
        alpha: ``(1,)``, weight of the attention path.
        kernel_size: Side of the attention window in pixels, odd.
        stride: Stride in pixels of the queries and of the convolution. Default: 1.
        dilation: Dilation of the window and of the convolution in pixels. Default: 1.

    Returns:
        Tensor: ``(B, C, ceil(H / stride), ceil(W / stride))``.

    Raises:
        ValueError: The shapes of x and of the projections do not fit.
        RuntimeError: Other shapes, dtypes or devices do not fit, or the kernels were not built.

    Examples:
        >>> import pytest, torch
        >>> from acmix_mm.ops.backends import cpu
        >>> if cpu.MISSING is not None:
        ...     pytest.skip(cpu.MISSING)
        >>> tensors = (torch.rand(shape) for shape in (
        ...     (2, 3, 9, 7), (24, 3), (24,), (4, 9, 7), (1, 9, 6), (1, 8, 9, 3, 3), (1,)))
        >>> acmix_layer(*tensors, kernel_size=5).shape
        torch.Size([2, 8, 9, 7])
    """
    check_pointwise_conv(x, qkv_weight, qkv_bias, chunks=3)
    return cpu.acmix_layer(
        x, qkv_weight, qkv_bias, position, fc_weight, kernel, alpha, kernel_size, stride, dilation
    )
