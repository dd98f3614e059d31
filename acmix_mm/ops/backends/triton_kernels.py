# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def"
"""Neighbourhood attention as fused CUDA kernels, written in Triton: no im2col, no padded copies.

As in :mod:`.tiled`, queries are cut into square tiles. A program attends from one tile: it goes
through the keys that any query of the tile sees, a block at a time, masks what a query does not
see, and keeps the softmax online. For a 7x7 window three of four products are masked. It should
still be the way for a GPU: both steps of attention are then matrix products, which tensor cores do
many times faster than element-wise code, and a key is read once for 64 queries. The arithmetic is
tested in Triton's interpreter; **speed has not been measured**, so that the backend runs only when
asked for by name.

The backward pass recomputes the weights from q, k and the log-sum-exp: one kernel per tile of
queries for the gradient of q, one per tile of keys for those of k and v. The latter gathers from
the queries that see a key, directly or mirrored at a border: nothing is added atomically, and
results are reproducible.

With stride s and dilation d, only queries d / gcd(s, d) apart share keys, and keys that share a
query are d apart. So the pixels of a tile are that far apart (``STEP``).

Inside the kernels an "image" is a pair of batch index and head, "pixels" are a triple of rows,
columns and whether they exist, and a "slice" is a part of the channels.
"""

# Triton's interpreter knows its constants by annotations that are strings.
from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..flops import register_flops

TILE = 8  # pixels a side of a tile
BLOCK = 32  # keys, or queries, that a tile meets at a time

# Sizes change from image to image, so there are no variants of a kernel for special ones.
_SIZES = ['height', 'width', 'out_height', 'out_width']
_kernel = triton.jit(do_not_specialize=_SIZES)


@triton.jit
def _tile(heads, height, width, STEP: tl.constexpr, TILE: tl.constexpr, SLICES: tl.constexpr):
    """What this program is for: image, slice, tile's first row and column, pixels."""
    down = tl.minimum(STEP, height) * tl.cdiv(tl.cdiv(height, STEP), TILE)
    across = tl.minimum(STEP, width) * tl.cdiv(tl.cdiv(width, STEP), TILE)
    index = tl.program_id(0)
    part, index = index % SLICES, index // SLICES
    column, index = index % across, index // across
    row, index = index % down, index // down
    row = row // STEP * STEP * TILE + row % STEP
    column = column // STEP * STEP * TILE + column % STEP
    n = tl.arange(0, TILE * TILE)
    rows, columns = row + STEP * (n // TILE), column + STEP * (n % TILE)
    pixels = (rows, columns, (rows < height) & (columns < width))
    return (index // heads, index % heads), part, row, column, pixels


@triton.jit
def _flat(image, heads, pixels, height, width):
    """Where pixels lie in a contiguous (batch, heads, height, width)."""
    return ((image[0].to(tl.int64) * heads + image[1]) * height + pixels[0]) * width + pixels[1]


@triton.jit
def _vectors(tensor, strides, image, pixels, part, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """(BLOCK_D, pixels): where a slice of some pixels lies, and what of it exists."""
    channels = part * BLOCK_D + tl.arange(0, BLOCK_D)
    tensor += image[0].to(tl.int64) * strides[0] + image[1].to(tl.int64) * strides[1]
    places = pixels[0].to(tl.int64) * strides[3] + pixels[1].to(tl.int64) * strides[4]
    tensor = tensor + channels.to(tl.int64)[:, None] * strides[2] + places[None, :]
    return tensor, (channels < DEPTH)[:, None] & pixels[2][None, :]


@triton.jit
def _load(tensor, strides, image, pixels, part, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """(BLOCK_D, pixels): a slice of some pixels, 0 where nothing is."""
    addresses, exist = _vectors(tensor, strides, image, pixels, part, DEPTH, BLOCK_D)
    return tl.load(addresses, mask=exist, other=0.0)


@triton.jit
def _store(
    tensor, strides, image, pixels, part, values, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Store (pixels, BLOCK_D) as a slice of some pixels."""
    addresses, exist = _vectors(tensor, strides, image, pixels, part, DEPTH, BLOCK_D)
    tl.store(addresses, tl.trans(values).to(tensor.dtype.element_ty), mask=exist)


@triton.jit
def _dot(a, b, SUM: tl.constexpr):
    # Tensor cores have no float32: three products of truncated numbers come as close.
    return tl.dot(a.to(b.dtype), b, input_precision='tf32x3', out_dtype=SUM)


@triton.jit
def _products(
    a, a_strides, a_pixels, b, b_strides, b_pixels, image,
    DEPTH: tl.constexpr, BLOCK_D: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """(pixels of a, pixels of b): scalar products over all channels."""
    result = tl.zeros((a_pixels[0].shape[0], b_pixels[0].shape[0]), SUM)
    for part in range(tl.cdiv(DEPTH, BLOCK_D)):
        a_slice = _load(a, a_strides, image, a_pixels, part, DEPTH, BLOCK_D)
        b_slice = _load(b, b_strides, image, b_pixels, part, DEPTH, BLOCK_D)
        result += _dot(tl.trans(a_slice), b_slice, SUM)
    return result


@triton.jit
def _sees(queries, keys, STRIDE: tl.constexpr, RADIUS: tl.constexpr):
    """(queries, keys): which key, at its place before reflection, is in a query's window."""
    distance = tl.abs(STRIDE * queries[0][:, None] - keys[0][None, :])
    return tl.maximum(distance, tl.abs(STRIDE * queries[1][:, None] - keys[1][None, :])) <= RADIUS


@triton.jit
def _reflect(places, size):
    """Where a reflection-padded axis reads, at places outside as well."""
    last = tl.maximum(size - 1, 1)
    places = tl.abs(places) % (2 * last)
    return tl.minimum(tl.minimum(places, 2 * last - places), size - 1)


@triton.jit
def _halo(
    start, row, column, height, width, STRIDE: tl.constexpr, DILATION: tl.constexpr,
    RADIUS: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of the keys that a tile of queries sees: before reflection, and after."""
    n = start + tl.arange(0, BLOCK)
    rows = STRIDE * row - RADIUS + DILATION * (n // SPAN)
    columns = STRIDE * column - RADIUS + DILATION * (n % SPAN)
    exist = n < SPAN * SPAN
    return (rows, columns, exist), (_reflect(rows, height), _reflect(columns, width), exist)


@_kernel
def _forward(
    q, k, v, out, lse, q_strides, k_strides, v_strides, out_strides,
    heads, height, width, out_height, out_width,
    STRIDE: tl.constexpr, DILATION: tl.constexpr, RADIUS: tl.constexpr, SCALE: tl.constexpr,
    STEP: tl.constexpr, SPAN: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    DEPTH: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of a tile of queries."""
    SUM: tl.constexpr = lse.dtype.element_ty
    image, part, row, column, queries = _tile(
        heads, out_height, out_width, STEP, TILE, tl.cdiv(DEPTH, BLOCK_D)
    )
    scale = tl.full((), SCALE, SUM)
    highest = tl.full((TILE * TILE,), float('-inf'), SUM)
    total = tl.zeros((TILE * TILE,), SUM)
    result = tl.zeros((TILE * TILE, BLOCK_D), SUM)
    for start in range(0, SPAN * SPAN, BLOCK):
        places, keys = _halo(
            start, row, column, height, width, STRIDE, DILATION, RADIUS, SPAN, BLOCK
        )
        logits = scale * _products(
            q, q_strides, queries, k, k_strides, keys, image, DEPTH, BLOCK_D, SUM
        )
        logits = tl.where(_sees(queries, places, STRIDE, RADIUS), logits, float('-inf'))
        before = highest
        highest = tl.maximum(before, tl.max(logits, 1))
        # -inf until a query meets its first key; -inf less itself would not be a number.
        offset = tl.where(highest == float('-inf'), 0.0, highest)
        weights, decay = tl.exp(logits - offset[:, None]), tl.exp(before - offset)
        total = total * decay + tl.sum(weights, 1)
        value = tl.trans(_load(v, v_strides, image, keys, part, DEPTH, BLOCK_D))
        result = result * decay[:, None] + _dot(weights, value, SUM)
    _store(out, out_strides, image, queries, part, result / total[:, None], DEPTH, BLOCK_D)
    lse += _flat(image, heads, queries, out_height, out_width)
    tl.store(lse, highest + tl.log(total), mask=queries[2])  # the same from every slice


@_kernel
def _backward_queries(
    q, k, v, out, grad, lse, delta, grad_q,
    q_strides, k_strides, v_strides, out_strides, grad_strides, grad_q_strides,
    heads, height, width, out_height, out_width,
    STRIDE: tl.constexpr, DILATION: tl.constexpr, RADIUS: tl.constexpr, SCALE: tl.constexpr,
    STEP: tl.constexpr, SPAN: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    DEPTH: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of queries; also ``delta``, the products of output and its gradient."""
    SUM: tl.constexpr = lse.dtype.element_ty
    image, part, row, column, queries = _tile(
        heads, out_height, out_width, STEP, TILE, tl.cdiv(DEPTH, BLOCK_D)
    )
    mean = tl.zeros((TILE * TILE,), SUM)
    for i in range(tl.cdiv(DEPTH, BLOCK_D)):
        output = _load(out, out_strides, image, queries, i, DEPTH, BLOCK_D)
        slope = _load(grad, grad_strides, image, queries, i, DEPTH, BLOCK_D)
        mean += tl.sum(output.to(SUM) * slope.to(SUM), 0)
    flat = _flat(image, heads, queries, out_height, out_width)
    tl.store(delta + flat, mean, mask=queries[2])  # the same from every slice
    offset = tl.load(lse + flat, mask=queries[2], other=0.0)

    scale = tl.full((), SCALE, SUM)
    result = tl.zeros((TILE * TILE, BLOCK_D), SUM)
    for start in range(0, SPAN * SPAN, BLOCK):
        places, keys = _halo(
            start, row, column, height, width, STRIDE, DILATION, RADIUS, SPAN, BLOCK
        )
        logits = scale * _products(
            q, q_strides, queries, k, k_strides, keys, image, DEPTH, BLOCK_D, SUM
        )
        seen = _sees(queries, places, STRIDE, RADIUS)
        weights = tl.exp(tl.where(seen, logits - offset[:, None], float('-inf')))
        slope = _products(
            grad, grad_strides, queries, v, v_strides, keys, image, DEPTH, BLOCK_D, SUM
        )
        key = tl.trans(_load(k, k_strides, image, keys, part, DEPTH, BLOCK_D))
        result += _dot(weights * (slope - mean[:, None]), key, SUM)
    _store(grad_q, grad_q_strides, image, queries, part, scale * result, DEPTH, BLOCK_D)


@triton.jit
def _mirror(
    segment, first, pixels, size, out_size,
    STRIDE: tl.constexpr, DILATION: tl.constexpr, RADIUS: tl.constexpr,
    STEP: tl.constexpr, INVERSE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Where a tile of keys appears in one segment of a reflected axis, and who may see it.

    Segment 0 is the axis itself less its last pixel, and odd ones run backwards:
    ``.. 2 1 | 0 1 2 | 3 2 1 | 0 1 2 | 3 ..``. A single pixel repeats itself.

    Returns:
        Places before reflection, out of sight for pixels that do not appear; the first query; how
        many queries, ``STEP`` apart.
    """
    OUT_OF_SIGHT: tl.constexpr = 2**29
    COMMON: tl.constexpr = DILATION // STEP  # the divisor of stride and dilation
    last = tl.maximum(size - 1, 1)
    low, high = segment * last, segment * last + last - 1
    backwards = (segment % 2 != 0) & (size > 1)
    origin, sign = tl.where(backwards, high + 1, low), tl.where(backwards, -1, 1)
    places = origin + sign * pixels
    appears = (pixels < size) & (places >= low) & (places <= high)
    end = origin + sign * tl.minimum(first + DILATION * (TILE - 1), size - 1)
    first = origin + sign * first
    low, high = tl.maximum(low, tl.minimum(first, end)), tl.minimum(high, tl.maximum(first, end))
    # A query sees places STRIDE * query + DILATION * n, which tells its rest modulo STEP.
    rest = (first % DILATION + DILATION) % DILATION
    query = tl.cdiv(tl.maximum(low - RADIUS, 0), STRIDE)
    query += ((rest // COMMON * INVERSE - query) % STEP + STEP) % STEP
    count = (tl.minimum((high + RADIUS) // STRIDE, out_size - 1) - query + STEP) // STEP
    count = tl.where((low <= high) & (rest % COMMON == 0), tl.maximum(count, 0), 0)
    return tl.where(appears, places, OUT_OF_SIGHT), query, count


@_kernel
def _backward_keys(
    q, k, v, grad, lse, delta, grad_k, grad_v,
    q_strides, k_strides, v_strides, grad_strides, grad_k_strides, grad_v_strides,
    heads, height, width, out_height, out_width,
    STRIDE: tl.constexpr, DILATION: tl.constexpr, RADIUS: tl.constexpr, SCALE: tl.constexpr,
    STEP: tl.constexpr, INVERSE: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    DEPTH: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values."""
    SUM: tl.constexpr = lse.dtype.element_ty
    image, part, row, column, keys = _tile(
        heads, height, width, DILATION, TILE, tl.cdiv(DEPTH, BLOCK_D)
    )
    scale = tl.full((), SCALE, SUM)
    key_result = tl.zeros((TILE * TILE, BLOCK_D), SUM)
    value_result = tl.zeros((TILE * TILE, BLOCK_D), SUM)
    last_row, last_column = tl.maximum(height - 1, 1), tl.maximum(width - 1, 1)
    for y in range(-tl.cdiv(RADIUS, last_row), (height - 1 + RADIUS) // last_row + 1):
        rows, query_row, down = _mirror(
            y, row, keys[0], height, out_height, STRIDE, DILATION, RADIUS, STEP, INVERSE, TILE
        )
        for x in range(-tl.cdiv(RADIUS, last_column), (width - 1 + RADIUS) // last_column + 1):
            columns, query_column, across = _mirror(
                x, column, keys[1], width, out_width, STRIDE, DILATION, RADIUS, STEP, INVERSE, TILE
            )
            for start in range(0, down * across, BLOCK):
                n = start + tl.arange(0, BLOCK)
                query_rows = query_row + STEP * (n // across)
                query_columns = query_column + STEP * (n % across)
                queries = (query_rows, query_columns, n < down * across)
                flat = _flat(image, heads, queries, out_height, out_width)
                offset = tl.load(lse + flat, mask=queries[2], other=0.0)
                mean = tl.load(delta + flat, mask=queries[2], other=0.0)

                logits = scale * _products(
                    k, k_strides, keys, q, q_strides, queries, image, DEPTH, BLOCK_D, SUM
                )
                seen = _sees(queries, (rows, columns), STRIDE, RADIUS) & queries[2][:, None]
                weights = tl.exp(tl.where(tl.trans(seen), logits - offset[None, :], float('-inf')))
                slope = _products(
                    v, v_strides, keys, grad, grad_strides, queries, image, DEPTH, BLOCK_D, SUM
                )
                query = tl.trans(_load(q, q_strides, image, queries, part, DEPTH, BLOCK_D))
                key_result += _dot(weights * (slope - mean[None, :]), query, SUM)
                upper = tl.trans(_load(grad, grad_strides, image, queries, part, DEPTH, BLOCK_D))
                value_result += _dot(weights, upper, SUM)
    _store(grad_k, grad_k_strides, image, keys, part, scale * key_result, DEPTH, BLOCK_D)
    _store(grad_v, grad_v_strides, image, keys, part, value_result, DEPTH, BLOCK_D)


# Without a GPU, where the environment variable TRITON_INTERPRET is 1: for tests, and slow.
INTERPRETED = not isinstance(_forward, triton.JITFunction)


def _launch(
    kernel: Any,
    tensors: tuple[Tensor, ...],
    kernel_size: int,
    stride: int,
    dilation: int,
    scale: float,
) -> None:
    """Run a kernel on tensors of which the first are q and k."""
    q, k, *_ = tensors
    batch_size, heads, depth, height, width = k.shape
    out_height, out_width = q.shape[3:]
    step = dilation // math.gcd(stride, dilation)
    # Slices of 128 bytes fit a GPU's registers, however many channels there are.
    block_d = min(max(16, triton.next_power_of_2(depth)), 128 // q.element_size())
    constants = dict(
        STRIDE=stride,
        DILATION=dilation,
        RADIUS=dilation * (kernel_size // 2),
        SCALE=scale,  # constant, because Triton passes numbers in single precision
        STEP=step,
        TILE=TILE,
        BLOCK=BLOCK,
        DEPTH=depth,
        BLOCK_D=block_d,
    )
    if kernel is _backward_keys:
        sides, apart = (height, width), dilation
        constants['INVERSE'] = pow(stride * step // dilation, -1, step)
    else:
        sides, apart = (out_height, out_width), step
        constants['SPAN'] = stride * step // dilation * (TILE - 1) + kernel_size
    tiles = math.prod(min(apart, side) * -(-side // (apart * TILE)) for side in sides)
    programs = batch_size * heads * tiles * -(-depth // block_d)
    strides = [tensor.stride() for tensor in tensors if tensor.dim() == 5]
    sizes = heads, height, width, out_height, out_width
    with torch.cuda.device_of(q):
        kernel[(programs,)](*tensors, *strides, *sizes, **constants)


_WINDOW = 'int kernel_size, int stride, int dilation, float scale'


@torch.library.custom_op(
    'acmix_mm::triton_neighborhood_attention_forward',
    mutates_args=(),
    schema=f'(Tensor q, Tensor k, Tensor v, {_WINDOW}) -> (Tensor, Tensor)',
)
def _attend(q: Tensor, k: Tensor, v: Tensor, *window: Any) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp."""
    out, lse = _attend_fake(q, k, v, *window)
    _launch(_forward, (q, k, v, out, lse), *window)
    return out, lse


@_attend.register_fake
def _attend_fake(q: Tensor, k: Tensor, v: Tensor, *window: Any) -> tuple[Tensor, Tensor]:
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.empty_like(q), q.new_empty(q[:, :, 0].shape, dtype=lse_dtype)


@torch.library.custom_op(
    'acmix_mm::triton_neighborhood_attention_backward',
    mutates_args=(),
    schema=f'(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_WINDOW})'
    ' -> (Tensor, Tensor, Tensor)',
)
def _differentiate(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *window: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    delta, (grad_q, grad_k, grad_v) = torch.empty_like(lse), _differentiate_fake(grad, q, k, v)
    _launch(_backward_queries, (q, k, v, out, grad, lse, delta, grad_q), *window)
    _launch(_backward_keys, (q, k, v, grad, lse, delta, grad_k, grad_v), *window)
    return grad_q, grad_k, grad_v


@_differentiate.register_fake
def _differentiate_fake(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *ctx.window = inputs
    ctx.save_for_backward(q, k, v, *output)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_differentiate(grad, *ctx.saved_tensors, *ctx.window), None, None, None, None


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("backend 'triton' has no second derivatives, backend='reference' has")


_attend.register_autograd(_backward, setup_context=_save)
_differentiate.register_autograd(_no_second_derivative)
register_flops('neighborhood_attention', prefix='triton_')


def neighborhood_attention(q: Tensor, k: Tensor, v: Tensor, *window: Any) -> Tensor:
    """See :func:`acmix_mm.ops.neighborhood_attention`."""
    return _attend(q, k, v, *window)[0]
