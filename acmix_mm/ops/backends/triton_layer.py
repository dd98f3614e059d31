# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def, assignment"
"""The sliding-window ACmix layer as one operator forward and one backward, for NVIDIA GPUs.

Where maps are small, launching a kernel takes longer than running it, and where they are large, the
time goes into reading and writing them. Forward there are four kernels:

* the projection to queries, keys and values;
* the product of all small weights of the convolution path (see ``dense``), the weight beta of the
  path included, which is that of a dense convolution;
* that convolution;
* attention (see ``triton_kernels``), which adds its result, times alpha, to the convolution. The
  position of a key is linear in its coordinates, so two numbers for each query and the coordinates
  give what it adds to a logit, in single precision. No map of positions is subtracted from the
  keys, where rounding it to bfloat16 would cost a fifth of its effect.

The kernels of this file work for one channel, or one row of the projection, at a time. A "tap" is a
pixel of the convolution's kernel, a "mixture" a sum of maps of one of the fully connected layers.
Sums over all programs are partial sums at first, which are added up once: nothing is added
atomically, and results are reproducible.
"""

# Triton's interpreter knows its constants by annotations that are strings.
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..flops import register_flops
from . import triton_kernels as attention
from .triton_kernels import arrange, has_data, launch, no_second_derivative, sum_dtype

PIXELS = 128  # that a program takes at a time
CHANNELS = 16
PARTIAL_SUMS = 64  # of what biases do at each tap
_SIZES_OF_IMAGES = ['images', 'height', 'width', 'out_height', 'out_width', 'to_image', 'to_row']


@triton.jit
def _filters(
    kernel, channel, channels, mixture_stride, tap_stride,
    MIXTURES: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr, TAP_BLOCK: tl.constexpr,
):  # fmt: skip
    """(mixtures of all pairs, taps): the kernels of a channel."""
    mixture, tap = tl.arange(0, BLOCK)[:, None], tl.arange(0, TAP_BLOCK)[None, :]
    kernel += (mixture // TAPS * channels + channel) * TAPS * TAPS
    place = mixture % TAPS * mixture_stride + tap * tap_stride
    return tl.load(kernel + place, mask=(mixture < MIXTURES) & (tap < TAPS), other=0.0)


@triton.jit
def _weights_of_map(
    fc_weight, m,
    MAPS: tl.constexpr, MIXTURES: tl.constexpr, BLOCK: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """The weights of a map: (mixtures, 1)."""
    mixture = tl.arange(0, BLOCK)[:, None]
    return tl.load(fc_weight + mixture * MAPS + m, mask=mixture < MIXTURES, other=0.0).to(SUM)


@triton.jit
def _compose(
    weight, bias, fc_weight, kernel, beta, composed, offset,
    inputs, channels, groups, mixture_stride, tap_stride, to_channel, to_input, to_tap,
    MAPS: tl.constexpr, MIXTURES: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr,
    TAP_BLOCK: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """Weights of a channel of the convolution for some inputs; what the biases do at each tap."""
    SUM: tl.constexpr = offset.dtype.element_ty
    channel = tl.program_id(0)
    group = channel // (channels // groups)
    tap = tl.arange(0, TAP_BLOCK)
    column = tl.program_id(1) * INPUTS + tl.arange(0, INPUTS)
    filters = tl.load(beta).to(SUM) * _filters(
        kernel, channel, channels, mixture_stride, tap_stride, MIXTURES, TAPS, BLOCK, TAP_BLOCK
    ).to(SUM)
    result, offsets = tl.zeros((TAP_BLOCK, INPUTS), SUM), tl.zeros((TAP_BLOCK,), SUM)
    for m in tl.range(MAPS):
        row = m * groups + group
        mixed = tl.sum(filters * _weights_of_map(fc_weight, m, MAPS, MIXTURES, BLOCK, SUM), 0)
        values = tl.load(weight + row * inputs + column, mask=column < inputs, other=0.0).to(SUM)
        result += mixed[:, None] * values[None, :]
        offsets += mixed * tl.load(bias + row).to(SUM)
    place = channel * to_channel + column[None, :] * to_input + tap[:, None] * to_tap
    exist = (tap[:, None] < TAPS) & (column[None, :] < inputs)
    tl.store(composed + place, result.to(composed.dtype.element_ty), mask=exist)
    if tl.program_id(1) == 0:
        tl.store(offset + tap * channels + channel, offsets, mask=tap < TAPS)
        tl.store(offset + TAPS * channels + channel, tl.sum(offsets, 0))


@triton.jit(do_not_specialize=_SIZES_OF_IMAGES)
def _sum_by_tap(
    grad, sums, to_image, to_channel, to_row, to_column,
    images, channels, height, width, out_height, out_width,
    STRIDE: tl.constexpr, DILATION: tl.constexpr, SIDE: tl.constexpr, TAP_BLOCK: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sums of a gradient over the pixels at which a tap lies inside of the image."""
    SUM: tl.constexpr = sums.dtype.element_ty
    tap, n = tl.arange(0, TAP_BLOCK)[:, None], tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    grad += channel.to(tl.int64) * to_channel
    size = out_height * out_width
    blocks = tl.cdiv(size, PIXELS)
    result = tl.zeros((TAP_BLOCK, CHANNELS), SUM)
    for block in tl.range(tl.program_id(0), images * blocks, tl.num_programs(0)):
        image, pixel = block // blocks, block % blocks * PIXELS + n
        row, column = pixel // out_width, pixel % out_width
        y = STRIDE * row + DILATION * (tap // SIDE - SIDE // 2)
        x = STRIDE * column + DILATION * (tap % SIDE - SIDE // 2)
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        place = tl.cast(image, tl.int64) * to_image + row.to(tl.int64) * to_row + column * to_column
        exist = (pixel[:, None] < size) & (channel < channels)
        values = tl.load(grad + place[:, None], mask=exist, other=0.0)
        ones = tl.where(inside, 1.0, 0.0).to(values.dtype)
        result = tl.dot(ones, values, result, input_precision='ieee', out_dtype=SUM)
    sums += (tl.program_id(0) * SIDE * SIDE + tap) * channels + channel
    tl.store(sums, result, mask=(tap < SIDE * SIDE) & (channel < channels))


@triton.jit
def _differentiate_row(
    grad_composed, grad_offset, grad_projection, grad_bias_projection,
    weight, bias, fc_weight, kernel, beta, grad_weight, grad_bias, grad_mixed,
    inputs, channels, groups, mixture_stride, tap_stride, to_channel, to_input, to_tap,
    MAPS: tl.constexpr, MIXTURES: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr,
    TAP_BLOCK: tl.constexpr, INPUTS: tl.constexpr, PARTIAL_SUMS: tl.constexpr,
):  # fmt: skip
    """Gradients of a row of the projection, and of its products with the channels of its group.

    The gradients through the projection itself are added.
    """
    SUM: tl.constexpr = grad_mixed.dtype.element_ty
    row = tl.program_id(0)
    m, group = row // groups, row % groups
    tap = tl.arange(0, TAP_BLOCK)
    # What concerns the bias, which has no inputs, is up to the first program of a row.
    part = tl.program_id(1) * PARTIAL_SUMS + tl.arange(0, PARTIAL_SUMS)[:, None]
    column = tl.program_id(1) * INPUTS + tl.arange(0, INPUTS)
    known = column < inputs
    weights = _weights_of_map(fc_weight, m, MAPS, MIXTURES, BLOCK, SUM) * tl.load(beta).to(SUM)
    values = tl.load(weight + row * inputs + column, mask=known, other=0.0).to(SUM)
    result = tl.load(grad_projection + row * inputs + column, mask=known, other=0.0).to(SUM)
    bias_of_row = tl.load(bias + row).to(SUM)
    bias_result = tl.load(grad_bias_projection + row).to(SUM)
    grad_mixed += tl.program_id(1) * channels * MAPS * TAPS
    of_group = channels // groups
    for channel in tl.range(group * of_group, (group + 1) * of_group):
        filters = _filters(
            kernel, channel, channels, mixture_stride, tap_stride, MIXTURES, TAPS, BLOCK, TAP_BLOCK
        ).to(SUM)
        mixed = tl.sum(filters * weights, 0)
        place = channel * to_channel + column[None, :] * to_input + tap[:, None] * to_tap
        exist = (tap[:, None] < TAPS) & known[None, :]
        slope = tl.load(grad_composed + place, mask=exist, other=0.0).to(SUM)
        result += tl.sum(slope * mixed[:, None], 0)
        place = grad_offset + (part * TAPS + tap[None, :]) * channels + channel
        exist = (tap[None, :] < TAPS) & (part < PARTIAL_SUMS)
        offsets = tl.sum(tl.load(place, mask=exist, other=0.0), 0)
        bias_result += tl.sum(mixed * offsets, 0)
        products = tl.sum(slope * values[None, :], 1) + bias_of_row * offsets
        tl.store(grad_mixed + (channel * MAPS + m) * TAPS + tap, products, mask=tap < TAPS)
    result = result.to(grad_weight.dtype.element_ty)
    tl.store(grad_weight + row * inputs + column, result, mask=known)
    if tl.program_id(1) == 0:
        tl.store(grad_bias + row, bias_result.to(grad_bias.dtype.element_ty))


@triton.jit(do_not_specialize=['count', 'strips'])
def _differentiate_filters(
    grad_mixed, delta, position_sums, fc_weight, kernel, beta, grad_kernel, sums,
    parts, channels, mixture_stride, tap_stride, count, strips,
    MAPS: tl.constexpr, MIXTURES: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr,
    TAP_BLOCK: tl.constexpr, DEPTH: tl.constexpr, DEPTH_BLOCK: tl.constexpr, MANY: tl.constexpr,
):  # fmt: skip
    """Gradient of the kernels of a channel; a share of what is summed over all channels.

    A row of ``sums`` holds the gradients of fully connected layers, position, its bias, alpha and
    beta. For those of position and alpha, a program takes some of the attention's partial sums.
    """
    SUM: tl.constexpr = sums.dtype.element_ty
    channel = tl.program_id(0)
    mixture, tap = tl.arange(0, BLOCK), tl.arange(0, TAP_BLOCK)
    filters = _filters(
        kernel, channel, channels, mixture_stride, tap_stride, MIXTURES, TAPS, BLOCK, TAP_BLOCK
    ).to(SUM)
    sums += channel * (MIXTURES * MAPS + 3 * DEPTH + 2)
    result, grad_beta = tl.zeros((BLOCK, TAP_BLOCK), SUM), tl.zeros((BLOCK,), SUM)
    factor = tl.load(beta).to(SUM)
    for m in tl.range(MAPS):
        weights = _weights_of_map(fc_weight, m, MAPS, MIXTURES, BLOCK, SUM)
        slope = tl.zeros((1, TAP_BLOCK), SUM)
        for part in tl.range(parts):
            place = grad_mixed + ((part * channels + channel) * MAPS + m) * TAPS + tap
            slope += tl.load(place, mask=tap < TAPS, other=0.0)[None, :]
        result += weights * slope
        products = tl.sum(filters * slope, 1)
        grad_beta += tl.sum(weights, 1) * products
        tl.store(sums + mixture * MAPS + m, factor * products, mask=mixture < MIXTURES)
    result *= factor
    grad_kernel += (mixture[:, None] // TAPS * channels + channel) * TAPS * TAPS
    place = mixture[:, None] % TAPS * mixture_stride + tap[None, :] * tap_stride
    exist = (mixture[:, None] < MIXTURES) & (tap[None, :] < TAPS)
    tl.store(grad_kernel + place, result.to(grad_kernel.dtype.element_ty), mask=exist)

    d, n = tl.arange(0, DEPTH_BLOCK), tl.arange(0, MANY)
    position, alpha = tl.zeros((DEPTH_BLOCK,), SUM), tl.zeros((MANY,), SUM)
    for strip in tl.range(channel, strips, channels):
        position += tl.load(position_sums + strip * 2 * DEPTH + d, mask=d < 2 * DEPTH, other=0.0)
    for start in tl.range(channel * MANY, count, channels * MANY):
        alpha += tl.load(delta + start + n, mask=start + n < count, other=0.0)
    sums += MIXTURES * MAPS
    # What the bias of the position adds to all keys alike has no gradient.
    tl.store(sums + d, tl.where(d < 2 * DEPTH, position, 0.0), mask=d < 3 * DEPTH)
    tl.store(sums + 3 * DEPTH, tl.sum(alpha, 0))
    tl.store(sums + 3 * DEPTH + 1, tl.sum(grad_beta, 0))


def _run(
    kernel: Any, grid: tuple[int, ...], *tensors: Tensor, sizes: Any, **constants: Any
) -> None:
    if has_data(tensors[0]):
        with torch.cuda.device_of(tensors[0]):
            kernel[grid](*tensors, *sizes, **constants)


def _of_taps(weight: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """A (channels, inputs, k, k) whose taps are equally far apart, and its strides."""
    if weight.stride(2) != weight.shape[3] * weight.stride(3):
        weight = weight.contiguous()
    return weight, (weight.stride(0), weight.stride(1), weight.stride(3))


class _Weights:
    """The small weights of a layer, whose product is a dense convolution.

    Args:
        weight: ``(3 * C, C_in)``, of the projection.
        bias: ``(3 * C,)``.
        fc_weight: ``(P, k*k, 3 * N)``.
        kernel: ``(P * C, k*k, k, k)``.
        beta: ``(1,)``, weight of the convolution path.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, fc_weight: Tensor, kernel: Tensor, beta: Tensor
    ) -> None:
        kernel, (_, *apart) = _of_taps(kernel)
        self._tensors = weight.contiguous(), bias, fc_weight.contiguous(), kernel, beta
        pairs, self._taps, maps = fc_weight.shape
        self._channels, self._inputs = len(weight) // 3, weight.shape[1]
        self._sizes = (self._inputs, self._channels, len(weight) // maps, *apart)
        block, tap_block = (_power_of_2(size) for size in (pairs * self._taps, self._taps))
        self._constants = dict(
            MAPS=maps,
            MIXTURES=pairs * self._taps,
            TAPS=self._taps,
            BLOCK=block,
            TAP_BLOCK=tap_block,
        )
        self._inputs_at_a_time = min(128, _power_of_2(self._inputs))
        self._parts = triton.cdiv(self._inputs, self._inputs_at_a_time)

    def compose(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Weight of the dense convolution of ``like``, and what biases add at each tap and at all.

        Returns:
            tuple[Tensor, Tensor]: ``(C, C_in, k, k)`` and ``(k*k + 1, C)``.
        """
        side = self._tensors[3].shape[-1]
        composed = torch.empty(
            (self._channels, self._inputs, side, side), dtype=like.dtype, device=like.device,
            memory_format=_memory_format(like),
        )  # fmt: skip
        offset = like.new_empty(self._taps + 1, self._channels, dtype=sum_dtype(like))
        _run(
            _compose, (self._channels, self._parts), *self._tensors, composed, offset,
            sizes=(*self._sizes, *_of_taps(composed)[1]),
            **self._constants, INPUTS=self._inputs_at_a_time,
        )  # fmt: skip
        return composed, offset

    def differentiate(
        self, grad_composed: Tensor, grad_offset: Tensor, *grad_projection: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of weight and bias, and of the products of each row and channel.

        Args:
            grad_composed: ``(C, C_in, k, k)``.
            grad_offset: ``(PARTIAL_SUMS, k*k, C)``.
            *grad_projection: Gradients of weight and bias through the projection itself.
        """
        weight, bias, *_ = self._tensors
        grads = torch.empty_like(weight), torch.empty_like(bias)
        grad_mixed = grad_offset.new_empty(
            self._parts, self._channels, self._constants['MAPS'], self._taps
        )
        grad_composed, strides = _of_taps(grad_composed)
        _run(
            _differentiate_row, (len(weight), self._parts),
            grad_composed, grad_offset, *grad_projection, *self._tensors, *grads, grad_mixed,
            sizes=(*self._sizes, *strides),
            **self._constants, INPUTS=self._inputs_at_a_time, PARTIAL_SUMS=PARTIAL_SUMS,
        )  # fmt: skip
        return *grads, grad_mixed

    def differentiate_filters(
        self, grad_mixed: Tensor, delta: Tensor, position_sums: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradient of the kernel, and those of the other parameters in one tensor.

        Args:
            grad_mixed: What ``differentiate`` returns.
            delta: What the gradient of alpha is the sum of.
            position_sums: ``(strips, D, 2)``, what the gradient of the position is the sum of.

        Returns:
            tuple[Tensor, Tensor]: That of the kernel; and of fc_weight, the position, its bias,
            alpha and beta, one after the other.
        """
        _, _, fc_weight, kernel, beta = self._tensors
        grad_kernel, (strips, depth, _) = torch.empty_like(kernel), position_sums.shape
        sums = grad_mixed.new_empty(self._channels, fc_weight.numel() + 3 * depth + 2)
        _, *sizes, apart_mixtures, apart_taps = self._sizes
        _run(
            _differentiate_filters, (self._channels,),
            grad_mixed, delta, position_sums, fc_weight, kernel, beta, grad_kernel, sums,
            sizes=(self._parts, sizes[0], apart_mixtures, apart_taps, delta.numel(), strips),
            **self._constants, DEPTH=depth, DEPTH_BLOCK=_power_of_2(3 * depth), MANY=1024,
        )  # fmt: skip
        return grad_kernel, sums.sum(0)


def _power_of_2(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


def _memory_format(maps: Tensor) -> torch.memory_format:
    return torch.channels_last if maps.stride(1) == 1 else torch.contiguous_format


def _sum_at_taps(
    grad: Tensor, size: tuple[int, ...], side: int, stride: int, dilation: int
) -> Tensor:
    """(B, C, H_out, W_out) -> (PARTIAL_SUMS, side * side, C), to be added up."""
    images, channels, *out_size = grad.shape
    sums = grad.new_empty(PARTIAL_SUMS, side**2, channels, dtype=sum_dtype(grad))
    _run(
        _sum_by_tap, (PARTIAL_SUMS, triton.cdiv(channels, CHANNELS)), grad, sums,
        sizes=(*grad.stride(), images, channels, *size, *out_size),
        STRIDE=stride, DILATION=dilation, SIDE=side, TAP_BLOCK=_power_of_2(side**2),
        PIXELS=PIXELS, CHANNELS=CHANNELS,
    )  # fmt: skip
    return sums


_GEOMETRY = 'int kernel_size, int stride, int dilation'
_INPUTS = (
    'Tensor x, Tensor weight, Tensor bias, Tensor fc_weight, Tensor kernel, Tensor beta, '
    'Tensor position, Tensor position_bias, Tensor alpha'
)


def _window(q: Tensor, kernel_size: int, stride: int, dilation: int) -> tuple[Any, ...]:
    return kernel_size, stride, dilation, q.shape[2] ** -0.5


def _split(qkv: Tensor, heads: int, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views (B, N, D, H, W) of queries, keys and values, with one query for each window."""
    q, k, v = (maps.unflatten(1, (heads, -1)) for maps in qkv.chunk(3, 1))
    return q[..., ::stride, ::stride], k, v


def run_forward(
    x: Tensor, weight: Tensor, bias: Tensor, fc_weight: Tensor, kernel: Tensor, beta: Tensor,
    position: Tensor, position_bias: Tensor, alpha: Tensor, kernel_size: int, stride: int,
    dilation: int, keep: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The layer, and what its backward pass needs.

    Returns:
        tuple[Tensor, ...]: Output, projections, attention, log-sum-exp and composed weight. The
        attention is empty unless it is to be kept.
    """
    heads, side = fc_weight.shape[-1] // 3, kernel.shape[-1]
    composed, offset = _Weights(weight, bias, fc_weight, kernel, beta).compose(x)
    padding = dilation * (side // 2)
    out = F.conv2d(x, composed, None, stride, padding, dilation)
    maps = arrange(x.unflatten(1, (1, -1)), len(weight) // 3 // heads).flatten(1, 2)
    qkv = F.conv2d(maps, weight.to(x.dtype)[:, :, None, None], bias.to(x.dtype))
    q, k, v = _split(qkv, heads, stride)
    attended = torch.empty_like(q) if keep else None
    lse = q.new_empty(q[:, :, 0].shape, dtype=sum_dtype(q))
    launch(
        attention.forward, (q, k, v, attended, out.unflatten(1, (heads, -1))),
        (lse, position, alpha, offset), _window(q, kernel_size, stride, dilation), SIDE=side,
    )  # fmt: skip
    return out, qkv, x.new_empty(0) if attended is None else attended, lse, composed


def run_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, fc_weight: Tensor, kernel: Tensor,
    beta: Tensor, position: Tensor, position_bias: Tensor, alpha: Tensor, qkv: Tensor,
    attended: Tensor, lse: Tensor, composed: Tensor, kernel_size: int, stride: int, dilation: int,
    for_input: bool, for_weights: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x, weight, bias and kernel, and what ``differentiate_filters`` sums up.

    Those that are not asked for are empty.
    """
    heads, side = fc_weight.shape[-1] // 3, kernel.shape[-1]
    weights = _Weights(weight, bias, fc_weight, kernel, beta)
    # With a stride there are pixels without a query, whose gradient is 0.
    grad_qkv = torch.empty_like(qkv) if stride == 1 else torch.zeros_like(qkv)
    (q, k, v), grads = _split(qkv, heads, stride), _split(grad_qkv, heads, stride)
    window = _window(q, kernel_size, stride, dilation)
    delta = torch.empty_like(lse)
    strips = attention.count_tiles(k, dilation) * attention.STRIPS.value
    position_sums = lse.new_empty(strips, k.shape[2], 2)
    out_grad = arrange(grad.unflatten(1, (heads, -1)))
    launch(
        attention.backward_queries, (q, k, v, attended, out_grad, grads[0]),
        (lse, delta, position, alpha), window,
    )  # fmt: skip
    launch(
        attention.backward_keys, (q, k, v, out_grad, *grads[1:]),
        (lse, delta, position, alpha, position_sums), window,
    )  # fmt: skip

    differentiate, padding = torch.ops.aten.convolution_backward, dilation * (side // 2)
    grad_x, grad_composed, _ = differentiate(
        grad, x, composed, None, [stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0], 1,
        [for_input, for_weights, False],
    )  # fmt: skip
    rows = weight.to(x.dtype)
    if for_input:
        # Added in place: a sum of two gradients of x would read and write three more maps. A view
        # in any case, which `flatten` need not return.
        grad_pixels = grad_x.view(*x.shape[:2], x.shape[2:].numel())
        grad_pixels.baddbmm_(rows.t().expand(len(x), -1, -1), grad_qkv.flatten(2))
        grad_x = grad_x.contiguous(memory_format=_memory_format(x))
    else:
        grad_x = x.new_empty(0)
    if not for_weights:
        return grad_x, *_no_gradients(x)
    maps = arrange(x.unflatten(1, (1, -1)), k.shape[2]).flatten(1, 2)
    _, *grad_projection = differentiate(
        grad_qkv, maps, rows[:, :, None, None], [len(bias)], [1, 1], [0, 0], [1, 1], False, [0, 0],
        1, [False, True, True],
    )  # fmt: skip
    grad_offset = _sum_at_taps(grad, x.shape[2:], side, stride, dilation)
    *grads, grad_mixed = weights.differentiate(grad_composed, grad_offset, *grad_projection)
    return grad_x, *grads, *weights.differentiate_filters(grad_mixed, delta, position_sums)


def _no_gradients(x: Tensor) -> Iterator[Tensor]:
    """Stand in for those of all weights. An operator may not return a tensor twice."""
    return (x.new_empty(0) for _ in range(4))


run = torch.library.custom_op(
    'acmix_mm::triton_dense_acmix_layer_forward',
    run_forward,
    mutates_args=(),
    schema=f'({_INPUTS}, {_GEOMETRY}, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor)',
)
run.register_fake(run_forward)  # kernels do not run without data
_differentiate = torch.library.custom_op(
    'acmix_mm::triton_dense_acmix_layer_backward',
    run_backward,
    mutates_args=(),
    schema=f'(Tensor grad, {_INPUTS}, Tensor qkv, Tensor attended, Tensor lse, Tensor composed, '
    f'{_GEOMETRY}, bool for_input, bool for_weights) -> (Tensor, Tensor, Tensor, Tensor, Tensor)',
)


@_differentiate.register_fake
def _backward_fake(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, fc_weight: Tensor, kernel: Tensor,
    beta: Tensor, position: Tensor, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    *_, for_input, for_weights = rest
    like_x = torch.empty_like(x, memory_format=_memory_format(x))
    grad_x = like_x if for_input else x.new_empty(0)
    if not for_weights:
        return grad_x, *_no_gradients(x)
    sums = x.new_empty(fc_weight.numel() + 3 * len(position) + 2, dtype=sum_dtype(x))
    return grad_x, *map(torch.empty_like, (weight, bias, kernel)), sums


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *tensors, kernel_size, stride, dilation, _ = inputs
    ctx.window = kernel_size, stride, dilation
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.set_materialize_grads(False)  # those of what is kept are never used


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: activation checkpointing refuses a second time
    _, _, _, fc_weight, _, beta, *others = saved[:9]
    for_input, *for_each = ctx.needs_input_grad[:9]
    grad_x, *grads, grad_kernel, sums = _differentiate(
        grad, *saved, *ctx.window, for_input, any(for_each)
    )
    result = grad_x if for_input else None
    if not any(for_each):
        return result, *[None] * 12
    summed = [fc_weight, *others, beta]
    parts = sums.split([parameter.numel() for parameter in summed])
    grad_fc, *grad_others, grad_beta = (
        part.view_as(parameter).to(parameter.dtype)
        for part, parameter in zip(parts, summed, strict=True)
    )
    return result, *grads, grad_fc, grad_kernel, grad_beta, *grad_others, *[None] * 4


run.register_autograd(_backward, setup_context=_save)
_differentiate.register_autograd(no_second_derivative)
register_flops('dense_acmix_layer', prefix='triton_')
