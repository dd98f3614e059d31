# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def, assignment"
# ruff: noqa: RUF005 -- Triton's language has no starred expressions
"""Neighborhood attention as fused CUDA kernels, written in Triton: no im2col, no padded copies.

Queries are cut into tiles of 8 x 8, a program for each, and a tile into strips of 2 x 8, a warp for
each: 16 rows of a matrix, as many as a tensor core multiplies at once. A strip attends to its halo,
which is 8 x 14 keys for a window of 7 x 7. Laid out as 8 x 16, 49 of 128 logits are of use; without
strips, it would be 49 of 256. The strips of a tile run side by side, so that they find the keys
that they share in the cache of their multiprocessor. Which key a query sees depends on their places
in halo and strip alone, so that the compiler knows most of the mask. Halos of larger windows are
taken in blocks, with the softmax kept online.

The arithmetic is tested in Triton's interpreter, and ``benchmarks/count_sass.py`` counts the
instructions that the kernels are compiled to. **Speed has not been measured.**

The backward pass recomputes the weights from q, k and the log-sum-exp: one kernel per tile of
queries for the gradient of q, one per tile of keys for those of k and v. The latter gathers from
the queries that see a key, directly or mirrored at a border: nothing is added atomically, and
results are reproducible.

With stride s and dilation d, only queries d / gcd(s, d) apart share keys, and keys that share a
query are d apart. So the pixels of a tile are that far apart (``STEP``), and the windows of
neighboring queries of a tile begin s / gcd(s, d) keys apart (``HOP``).

Inside the kernels an "image" is what belongs to one batch index and head: an address, and the
strides of channels, rows and columns. "Pixels" are rows, columns and whether they exist, each
``(strips, pixels)`` or a shape that broadcasts to it. A "slice" is a part of the channels.
Exponentials and logarithms are to the base of 2, which is what GPUs compute.
"""

# Triton's interpreter knows its constants by annotations that are strings.
from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses import FakeTensor

from ..flops import register_flops

ROWS, COLUMNS = tl.constexpr(2), tl.constexpr(8)  # of a strip
PIXELS = tl.constexpr(16)  # of a strip
STRIPS = tl.constexpr(4)  # of a tile, one below the other
SLICE = tl.constexpr(16)  # channels that are taken at a time
LOG2_E = tl.constexpr(1.4426950408889634)

# Sizes change from image to image, so there are no variants of a kernel for special ones.
_SIZES = ['heads', 'height', 'width', 'out_height', 'out_width']
_REACH = ['above', 'below', 'before', 'after']
_kernel = triton.jit(do_not_specialize=[*_SIZES, *_REACH])


@triton.jit
def _tile(heads, height, width, STEP: tl.constexpr):
    """What this program is for: batch index, head, first row and column of a tile."""
    down = tl.minimum(STEP, height) * tl.cdiv(tl.cdiv(height, STEP), STRIPS * ROWS)
    across = tl.minimum(STEP, width) * tl.cdiv(tl.cdiv(width, STEP), COLUMNS)
    index = tl.program_id(0)
    column, index = index % across, index // across
    row, index = index % down, index // down
    row = row // STEP * STEP * STRIPS * ROWS + row % STEP
    column = column // STEP * STEP * COLUMNS + column % STEP
    return index // heads, index % heads, row, column


@triton.jit
def _pixels(row, column, height, width, STEP: tl.constexpr):
    """The pixels of a tile."""
    strip, n = tl.arange(0, STRIPS)[:, None], tl.arange(0, PIXELS)[None, :]
    rows = row + STEP * (ROWS * strip + n // COLUMNS)
    columns = column + STEP * (n % COLUMNS)
    return rows, columns, (rows < height) & (columns < width)


@triton.jit
def _flat(batch, head, heads, pixels, height, width):
    """Where pixels lie in a contiguous (batch, heads, height, width)."""
    return ((batch.to(tl.int64) * heads + head) * height + pixels[0]) * width + pixels[1]


@triton.jit
def _image(tensor, codes, batch, head, LAYOUT: tl.constexpr, OFFSET: tl.constexpr):
    """The image of a tensor, from the codes of its strides (``_stride_codes``) and its layout."""
    ALIGNED: tl.constexpr = LAYOUT if LAYOUT > 0 else 1
    tensor += batch.to(tl.int64) * tl.multiple_of((codes[0] - 3) >> 1, ALIGNED)
    tensor += head.to(tl.int64) * tl.multiple_of((codes[1] - 3) >> 1, ALIGNED)
    channel = ((codes[2] - 3) >> 1).to(OFFSET)
    row = tl.multiple_of(((codes[3] - 3) >> 1).to(OFFSET), ALIGNED)
    column = tl.multiple_of(((codes[4] - 3) >> 1).to(OFFSET), ALIGNED)
    if LAYOUT > 0:
        channel = tl.full((), 1, OFFSET)
    elif LAYOUT == 0:
        column = tl.full((), 1, OFFSET)
    return tensor, channel, row, column


@triton.jit
def _addresses(image, pixels, first, DEPTH: tl.constexpr):
    """(strips, pixels, SLICE): where a slice of some pixels lies, and what of it exists."""
    tensor, channel_stride, row_stride, column_stride = image
    rows, columns, exist = pixels
    tensor += first * channel_stride.to(tl.int64)
    channels = tl.arange(0, SLICE)[None, None, :]
    places = (rows * row_stride + columns * column_stride)[:, :, None]
    exist = exist[:, :, None] & (channels < DEPTH - first)
    return tensor + (places + channels * channel_stride), exist


@triton.jit
def _load(image, pixels, first, DEPTH: tl.constexpr):
    """(strips, pixels, SLICE): a slice of some pixels, 0 where nothing is."""
    addresses, exist = _addresses(image, pixels, first, DEPTH)
    return tl.load(addresses, mask=exist, other=0.0)


@triton.jit
def _store(image, pixels, slices, factor, DEPTH: tl.constexpr):
    """Store all slices of some pixels, multiplied by a factor."""
    for first in tl.static_range(0, DEPTH, SLICE):
        addresses, exist = _addresses(image, pixels, first, DEPTH)
        values = (slices[first // SLICE] * factor).to(image[0].dtype.element_ty)
        tl.store(addresses, values, mask=exist)


@triton.jit
def _truncate(values):
    """float32 as tensor cores read it: TF32, which has 10 bits of the mantissa."""
    return (values.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def _add_product(total, a, b, SUM: tl.constexpr, PRECISION: tl.constexpr):
    """Add a product of matrices, one for each strip.

    Triton's own ``'tf32x3'`` looks for NaN in each of three products, which costs more than they
    do, so that an infinite number stays infinite. Here it becomes NaN.
    """
    if PRECISION == 'tf32x3':
        a_high, b_high = _truncate(a), _truncate(b)
        total = tl.dot(a - a_high, b_high, total, input_precision='tf32', out_dtype=SUM)
        total = tl.dot(a_high, b - b_high, total, input_precision='tf32', out_dtype=SUM)
        return tl.dot(a_high, b_high, total, input_precision='tf32', out_dtype=SUM)
    else:
        return tl.dot(a, b, total, input_precision=PRECISION, out_dtype=SUM)


@triton.jit
def _position_weights(position, first, DEPTH: tl.constexpr, SUM: tl.constexpr):
    """(1, 1, SLICE), twice: how the position of a slice grows along x and y."""
    channels = first + tl.arange(0, SLICE)[None, None, :]
    weights, exist = position + 2 * channels, channels < DEPTH
    along_x = tl.load(weights, mask=exist, other=0.0).to(SUM)
    return along_x, tl.load(weights + 1, mask=exist, other=0.0).to(SUM)


@triton.jit
def _products(
    a, a_pixels, b, b_pixels,
    DEPTH: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr,
    position=None, x=None, y=None,
):  # fmt: skip
    """(strips, pixels of a, pixels of b): scalar products over all channels.

    Those of a are keys if there is a position, which is subtracted from them.
    """
    COUNT: tl.constexpr = b_pixels[2].shape[1]
    result = tl.zeros((STRIPS, PIXELS, COUNT), SUM)
    for first in tl.static_range(0, DEPTH, SLICE):
        a_slice = _load(a, a_pixels, first, DEPTH)
        b_slice = tl.trans(_load(b, b_pixels, first, DEPTH), 0, 2, 1)
        if position is not None:
            along_x, along_y = _position_weights(position, first, DEPTH, SUM)
            rest = -(along_x * x + along_y * y)
            if PRECISION == 'tf32x3' or tl.float64 == SUM:
                a_slice += rest
            else:  # the sum of two rounded numbers is twice as exact
                for _ in tl.static_range(2):
                    part = _truncate(rest) if PRECISION == 'tf32' else rest.to(a_slice.dtype)
                    result = _add_product(result, part, b_slice, SUM, PRECISION)
                    rest -= part.to(SUM)
        result = _add_product(result, a_slice, b_slice, SUM, PRECISION)
    return result


@triton.jit
def _zeros(DEPTH: tl.constexpr, SUM: tl.constexpr):
    """A tuple of slices (strips, pixels, SLICE)."""
    slices = ()
    for _ in tl.static_range(0, DEPTH, SLICE):
        slices = slices + (tl.zeros((STRIPS, PIXELS, SLICE), SUM),)
    return slices


@triton.jit
def _add_weighed(
    slices, decay, weights, image, pixels,
    DEPTH: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Multiply all slices by ``decay``, and add pixels of an image, each times its weight."""
    result = ()
    for first in tl.static_range(0, DEPTH, SLICE):
        values = _load(image, pixels, first, DEPTH)
        total = slices[first // SLICE] * decay
        total = _add_product(total, weights.to(values.dtype), values, SUM, PRECISION)
        result = result + (total,)
    return result


@triton.jit
def _reflect(places, size):
    """Where a reflection-padded axis reads, at places outside as well."""
    last = tl.maximum(size - 1, 1)
    places = tl.abs(places) % (2 * last)
    return tl.minimum(tl.minimum(places, 2 * last - places), size - 1)


@triton.jit
def _halo(
    y, x, row, column, height, width,
    STRIDE: tl.constexpr, DILATION: tl.constexpr, KERNEL: tl.constexpr, HOP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """A block of keys from row y and column x of the halo of each strip of a tile of queries.

    Returns:
        The pixels, their rows and columns before reflection, and which of them a query sees:
        (1, queries, keys).
    """
    BLOCK: tl.constexpr = BLOCK_ROWS * BLOCK_COLUMNS
    RADIUS: tl.constexpr = DILATION * (KERNEL // 2)
    strip, n = tl.arange(0, STRIPS)[:, None], tl.arange(0, BLOCK)[None, :]
    top, left = STRIDE * row - RADIUS + DILATION * y, STRIDE * column - RADIUS + DILATION * x
    rows = top + DILATION * (HOP * ROWS * strip + n // BLOCK_COLUMNS)
    columns = left + DILATION * (n % BLOCK_COLUMNS)
    places = rows, columns
    bottom = top + DILATION * (HOP * ROWS * (STRIPS - 1) + BLOCK_ROWS - 1)
    right = left + DILATION * (BLOCK_COLUMNS - 1)
    if (top < 0) | (left < 0) | (bottom >= height) | (right >= width):
        rows, columns = _reflect(rows, height), _reflect(columns, width)

    query = tl.arange(0, PIXELS)[:, None]
    down = y + n // BLOCK_COLUMNS - HOP * (query // COLUMNS)
    across = x + n % BLOCK_COLUMNS - HOP * (query % COLUMNS)
    seen = (down >= 0) & (down < KERNEL) & (across >= 0) & (across < KERNEL)
    return (rows, columns, tl.full((STRIPS, BLOCK), True, tl.int1)), places, seen[None]


@triton.jit
def _times(alpha, factor, SUM: tl.constexpr):
    """A factor times the weight of the attention, if it has one."""
    if alpha is not None:
        factor = factor * tl.load(alpha).to(SUM)
    return factor


@triton.jit
def _coordinate(places, size, SUM: tl.constexpr):
    """Coordinates of rows or columns, from -1 to 1 over an axis of this size and back beyond it.

    From places before reflection: for the compiler they are a few numbers, each of which many keys
    share. An axis of one pixel has no other coordinate than -1.
    """
    one = tl.full((), 1, SUM)
    steps = places.to(SUM) * tl.where(size > 1, one / tl.maximum(size - 1, 1).to(SUM), one - one)
    return 2 * tl.abs(steps - 2 * tl.floor(steps / 2 + 0.5)) - 1


@triton.jit
def _slopes(position, q, queries, DEPTH: tl.constexpr, SUM: tl.constexpr):
    """(strips, queries), twice: how products of queries and position grow along x and y."""
    along_x, along_y = tl.zeros((STRIPS, PIXELS), SUM), tl.zeros((STRIPS, PIXELS), SUM)
    for first in tl.static_range(0, DEPTH, SLICE):
        values = _load(q, queries, first, DEPTH).to(SUM)
        x_weights, y_weights = _position_weights(position, first, DEPTH, SUM)
        along_x += tl.sum(values * x_weights, 2)
        along_y += tl.sum(values * y_weights, 2)
    return along_x, along_y


@triton.jit
def _subtract_from_logits(logits, slopes, x, y):
    """Subtract what the position of the keys adds to logits, from the coordinates of the keys.

    Not as a sum of products: the compiler would make it where it finds the factors, and then copy
    all of it to the threads that hold the logits.
    """
    logits = tl.fma(-slopes[0][:, :, None], x, logits)
    return tl.fma(-slopes[1][:, :, None], y, logits)


@triton.jit
def _subtract_position(slices, position, sum_x, sum_y, DEPTH: tl.constexpr, SUM: tl.constexpr):
    """Subtract the position from keys that were added up, from the sums of their coordinates."""
    result = ()
    for first in tl.static_range(0, DEPTH, SLICE):
        x_weights, y_weights = _position_weights(position, first, DEPTH, SUM)
        sums = sum_x[:, :, None] * x_weights + sum_y[:, :, None] * y_weights
        result = result + (slices[first // SLICE] - sums,)
    return result


@triton.jit
def _add_to_convolution(
    maps, offset, pixels, attention, factor, head, heads, height, width,
    STRIDE: tl.constexpr, DILATION: tl.constexpr, SIDE: tl.constexpr, DEPTH: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """Add attention, times a factor, to the convolution, and what biases do at its taps.

    A tap outside of the image has no bias. After one row for each tap, the offsets have one for
    the sum of all of them.
    """
    rows, columns, _ = pixels
    TAPS: tl.constexpr = SIDE * SIDE
    REACH: tl.constexpr = DILATION * (SIDE // 2)
    rows, columns = STRIDE * rows - REACH, STRIDE * columns - REACH
    inner = (rows >= 0) & (rows < height - 2 * REACH)
    inner &= (columns >= 0) & (columns < width - 2 * REACH)
    all_inner = tl.min(tl.min(inner.to(tl.int32), 1), 0) == 1
    for first in tl.static_range(0, DEPTH, SLICE):
        channels = first + tl.arange(0, SLICE)
        offsets, known = offset + head * DEPTH + channels, channels < DEPTH
        bias = tl.load(offsets + TAPS * heads * DEPTH, mask=known, other=0.0)
        bias = tl.broadcast_to(bias[None, None, :], (STRIPS, PIXELS, SLICE))
        if not all_inner:
            bias = tl.zeros((STRIPS, PIXELS, SLICE), SUM)
            for tap in range(TAPS):
                y, x = rows + DILATION * (tap // SIDE), columns + DILATION * (tap % SIDE)
                inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
                value = tl.load(offsets + tap * heads * DEPTH, mask=known, other=0.0)
                bias += tl.where(inside[:, :, None], value[None, None, :], 0.0)
        addresses, exists = _addresses(maps, pixels, first, DEPTH)
        total = tl.load(addresses, mask=exists, other=0.0).to(SUM) + bias
        total += attention[first // SLICE] * factor[:, :, None]
        tl.store(addresses, total.to(maps[0].dtype.element_ty), mask=exists)


@_kernel
def forward(
    q, k, v, out, mixed, q_codes, k_codes, v_codes, out_codes, mixed_codes,
    lse, position, alpha, offset,
    heads, height, width, out_height, out_width, scale: tl.float64,
    STRIDE: tl.constexpr, DILATION: tl.constexpr, KERNEL: tl.constexpr, STEP: tl.constexpr,
    HOP: tl.constexpr, SPAN_ROWS: tl.constexpr, SPAN_COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    LAYOUTS: tl.constexpr, OFFSET: tl.constexpr, PRECISION: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of a tile of queries.

    In a layer, ``mixed`` holds the convolution, to which the output times ``alpha`` is added.
    """
    SUM: tl.constexpr = lse.dtype.element_ty
    batch, head, row, column = _tile(heads, out_height, out_width, STEP)
    q = _image(q, q_codes, batch, head, LAYOUTS[0], OFFSET)
    k = _image(k, k_codes, batch, head, LAYOUTS[1], OFFSET)
    v = _image(v, v_codes, batch, head, LAYOUTS[2], OFFSET)
    queries = _pixels(row, column, out_height, out_width, STEP)
    if position is not None:
        slopes = _slopes(position, q, queries, DEPTH, SUM)

    scale = tl.full((), scale, SUM) * tl.full((), LOG2_E, SUM)
    highest = tl.full((STRIPS, PIXELS), float('-inf'), SUM)
    total = tl.zeros((STRIPS, PIXELS), SUM)
    result = _zeros(DEPTH, SUM)
    # What stays the same from block to block is kept, unless it takes too much shared memory.
    for down in tl.range(0, SPAN_ROWS, BLOCK_ROWS, disable_licm=DEPTH > 64):
        for across in tl.range(0, SPAN_COLUMNS, BLOCK_COLUMNS, disable_licm=DEPTH > 64):
            keys, places, seen = _halo(
                down, across, row, column, height, width,
                STRIDE, DILATION, KERNEL, HOP, BLOCK_ROWS, BLOCK_COLUMNS,
            )  # fmt: skip
            logits = _products(q, queries, k, keys, DEPTH, SUM, PRECISION)
            if position is not None:
                x = _coordinate(places[1], width, SUM)[:, None, :]
                y = _coordinate(places[0], height, SUM)[:, None, :]
                logits = _subtract_from_logits(logits, slopes, x, y)
            logits = tl.where(seen, scale * logits, float('-inf'))
            before = highest
            highest = tl.maximum(before, tl.max(logits, 2))
            # -inf until a query meets its first key; -inf less itself would not be a number.
            peak = tl.where(highest == float('-inf'), 0.0, highest)
            weights, decay = tl.exp2(logits - peak[:, :, None]), tl.exp2(before - peak)
            total = total * decay + tl.sum(weights, 2)
            result = _add_weighed(
                result, decay[:, :, None], weights, v, keys, DEPTH, SUM, PRECISION
            )
    if out is not None:
        out = _image(out, out_codes, batch, head, LAYOUTS[3], OFFSET)
        _store(out, queries, result, (1 / total)[:, :, None], DEPTH)
    if mixed is not None:
        mixed = _image(mixed, mixed_codes, batch, head, LAYOUTS[4], OFFSET)
        _add_to_convolution(
            mixed, offset, queries, result, _times(alpha, 1 / total, SUM), head, heads,
            height, width, STRIDE, DILATION, SIDE, DEPTH, SUM,
        )  # fmt: skip
    lse += _flat(batch, head, heads, queries, out_height, out_width)
    tl.store(lse, highest + tl.log2(total), mask=queries[2])


@_kernel
def backward_queries(
    q, k, v, out, grad, grad_q, q_codes, k_codes, v_codes, out_codes, grad_codes, grad_q_codes,
    lse, delta, position, alpha,
    heads, height, width, out_height, out_width, scale: tl.float64,
    STRIDE: tl.constexpr, DILATION: tl.constexpr, KERNEL: tl.constexpr, STEP: tl.constexpr,
    HOP: tl.constexpr, SPAN_ROWS: tl.constexpr, SPAN_COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    LAYOUTS: tl.constexpr, OFFSET: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of queries; also ``delta``, the products of output and its gradient."""
    SUM: tl.constexpr = lse.dtype.element_ty
    batch, head, row, column = _tile(heads, out_height, out_width, STEP)
    q = _image(q, q_codes, batch, head, LAYOUTS[0], OFFSET)
    k = _image(k, k_codes, batch, head, LAYOUTS[1], OFFSET)
    v = _image(v, v_codes, batch, head, LAYOUTS[2], OFFSET)
    out = _image(out, out_codes, batch, head, LAYOUTS[3], OFFSET)
    grad = _image(grad, grad_codes, batch, head, LAYOUTS[4], OFFSET)
    grad_q = _image(grad_q, grad_q_codes, batch, head, LAYOUTS[5], OFFSET)
    queries = _pixels(row, column, out_height, out_width, STEP)

    mean = tl.zeros((STRIPS, PIXELS), SUM)
    for first in tl.static_range(0, DEPTH, SLICE):
        output = _load(out, queries, first, DEPTH).to(SUM)
        mean += tl.sum(output * _load(grad, queries, first, DEPTH).to(SUM), 2)
    flat = _flat(batch, head, heads, queries, out_height, out_width)
    tl.store(delta + flat, mean, mask=queries[2])
    offset = tl.load(lse + flat, mask=queries[2], other=0.0)
    if position is not None:
        slopes = _slopes(position, q, queries, DEPTH, SUM)
        sum_x, sum_y = tl.zeros((STRIPS, PIXELS), SUM), tl.zeros((STRIPS, PIXELS), SUM)

    scale = tl.full((), scale, SUM)
    result = _zeros(DEPTH, SUM)
    for down in tl.range(0, SPAN_ROWS, BLOCK_ROWS, disable_licm=DEPTH > 64):
        for across in tl.range(0, SPAN_COLUMNS, BLOCK_COLUMNS, disable_licm=DEPTH > 64):
            keys, places, seen = _halo(
                down, across, row, column, height, width,
                STRIDE, DILATION, KERNEL, HOP, BLOCK_ROWS, BLOCK_COLUMNS,
            )  # fmt: skip
            logits = _products(q, queries, k, keys, DEPTH, SUM, PRECISION)
            if position is not None:
                x = _coordinate(places[1], width, SUM)[:, None, :]
                y = _coordinate(places[0], height, SUM)[:, None, :]
                logits = _subtract_from_logits(logits, slopes, x, y)
            logits *= scale * tl.full((), LOG2_E, SUM)
            weights = tl.exp2(tl.where(seen, logits - offset[:, :, None], float('-inf')))
            slope = _products(grad, queries, v, keys, DEPTH, SUM, PRECISION)
            slope = weights * (slope - mean[:, :, None])
            result = _add_weighed(result, 1, slope, k, keys, DEPTH, SUM, PRECISION)
            if position is not None:
                sum_x += tl.sum(slope * x, 2)
                sum_y += tl.sum(slope * y, 2)
    if position is not None:
        result = _subtract_position(result, position, sum_x, sum_y, DEPTH, SUM)
    _store(grad_q, queries, result, _times(alpha, scale, SUM), DEPTH)


@triton.jit
def _segments(
    first, size, before, after,
    COUNT: tl.constexpr, DILATION: tl.constexpr, KERNEL: tl.constexpr,
):  # fmt: skip
    """The first segment of a reflected axis that shows keys to a query, and the end.

    Away from the borders that is segment 0 alone.
    """
    RADIUS: tl.constexpr = DILATION * (KERNEL // 2)
    last = first + DILATION * (COUNT - 1)
    begin = tl.where(first <= RADIUS, -before, 0)
    return begin, tl.where(last >= size - 1 - RADIUS, after, 0) + 1


@triton.jit
def _mirror(
    segment, pixels, first, size,
    COUNT: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, KERNEL: tl.constexpr,
    STEP: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """Where keys of a strip appear in one segment of a reflected axis, and who may see them.

    Segment 0 is the axis itself less its last pixel, and odd ones run backwards:
    ``.. 2 1 | 0 1 2 | 3 2 1 | 0 1 2 | 3 ..``. A single pixel repeats itself.

    Returns:
        Places before reflection, out of sight for pixels that do not appear; the first query.
    """
    OUT_OF_SIGHT: tl.constexpr = 2**29
    COMMON: tl.constexpr = DILATION // STEP  # the divisor of stride and dilation
    last = tl.maximum(size - 1, 1)
    low = segment * last
    backwards = (segment % 2 != 0) & (size > 1)
    origin, sign = tl.where(backwards, low + last, low), tl.where(backwards, -1, 1)
    places = origin + sign * pixels
    appear = (pixels < size) & (places >= low) & (places < low + last)
    lowest = tl.where(backwards, origin - first - DILATION * (COUNT - 1), origin + first)
    # A query sees places STRIDE * query + DILATION * n, which tells its rest modulo STEP.
    rest = (lowest % DILATION + DILATION) % DILATION
    query = tl.cdiv(tl.maximum(lowest - DILATION * (KERNEL // 2), 0), STRIDE)
    query += ((rest // COMMON * INVERSE - query) % STEP + STEP) % STEP
    return tl.where(appear & (rest % COMMON == 0), places, OUT_OF_SIGHT), query


@triton.jit
def _sees(queries, keys, size, STRIDE: tl.constexpr, DILATION: tl.constexpr, KERNEL: tl.constexpr):
    """(strips, keys, queries): which key, at its place before reflection, is in a window."""
    distance = tl.abs(STRIDE * queries[:, None, :] - keys[:, :, None])
    return (distance <= DILATION * (KERNEL // 2)) & (queries < size)[:, None, :]


@_kernel
def backward_keys(
    q, k, v, grad, grad_k, grad_v,
    q_codes, k_codes, v_codes, grad_codes, grad_k_codes, grad_v_codes,
    lse, delta, position, alpha, position_sums,
    heads, height, width, out_height, out_width, above, below, before, after, scale: tl.float64,
    STRIDE: tl.constexpr, DILATION: tl.constexpr, KERNEL: tl.constexpr, STEP: tl.constexpr,
    INVERSE: tl.constexpr, SPAN_ROWS: tl.constexpr, SPAN_COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    LAYOUTS: tl.constexpr, OFFSET: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values; its share of that of the position, in a layer."""
    SUM: tl.constexpr = lse.dtype.element_ty
    batch, head, row, column = _tile(heads, height, width, DILATION)
    q = _image(q, q_codes, batch, head, LAYOUTS[0], OFFSET)
    k = _image(k, k_codes, batch, head, LAYOUTS[1], OFFSET)
    v = _image(v, v_codes, batch, head, LAYOUTS[2], OFFSET)
    grad = _image(grad, grad_codes, batch, head, LAYOUTS[3], OFFSET)
    grad_k = _image(grad_k, grad_k_codes, batch, head, LAYOUTS[4], OFFSET)
    grad_v = _image(grad_v, grad_v_codes, batch, head, LAYOUTS[5], OFFSET)
    keys = _pixels(row, column, height, width, DILATION)
    strip, n = tl.arange(0, STRIPS)[:, None], tl.arange(0, BLOCK_ROWS * BLOCK_COLUMNS)[None, :]
    y_of_key = _coordinate(keys[0], height, SUM)[:, :, None]
    x_of_key = _coordinate(keys[1], width, SUM)[:, :, None]

    scale = tl.full((), scale, SUM)
    key_result, value_result = _zeros(DEPTH, SUM), _zeros(DEPTH, SUM)
    # In a layer, what stays the same takes twice the shared memory if positions are split in two.
    MOST: tl.constexpr = 32 if PRECISION == 'tf32' and position is not None else 64
    FORGET: tl.constexpr = DEPTH > MOST
    top, bottom = _segments(row, height, above, below, STRIPS * ROWS, DILATION, KERNEL)
    left, right = _segments(column, width, before, after, COLUMNS, DILATION, KERNEL)
    for down in tl.range(top, bottom, disable_licm=FORGET):
        rows, first_row = _mirror(
            down, keys[0], row + DILATION * ROWS * strip, height,
            ROWS, STRIDE, DILATION, KERNEL, STEP, INVERSE,
        )  # fmt: skip
        for across in tl.range(left, right, disable_licm=FORGET):
            columns, first_column = _mirror(
                across, keys[1], column, width,
                COLUMNS, STRIDE, DILATION, KERNEL, STEP, INVERSE,
            )  # fmt: skip
            for y in tl.range(0, SPAN_ROWS, BLOCK_ROWS, disable_licm=FORGET):
                for x in tl.range(0, SPAN_COLUMNS, BLOCK_COLUMNS, disable_licm=FORGET):
                    query_rows = first_row + STEP * (y + n // BLOCK_COLUMNS)
                    query_columns = first_column + STEP * (x + n % BLOCK_COLUMNS)
                    exist = (query_rows < out_height) & (query_columns < out_width)
                    queries = (query_rows, query_columns, exist)
                    flat = _flat(batch, head, heads, queries, out_height, out_width)
                    offset = tl.load(lse + flat, mask=exist, other=0.0)
                    mean = tl.load(delta + flat, mask=exist, other=0.0)

                    logits = _products(
                        k, keys, q, queries, DEPTH, SUM, PRECISION, position, x_of_key, y_of_key
                    )
                    logits *= scale * tl.full((), LOG2_E, SUM)
                    seen = _sees(query_rows, rows, out_height, STRIDE, DILATION, KERNEL)
                    seen &= _sees(query_columns, columns, out_width, STRIDE, DILATION, KERNEL)
                    logits = tl.where(seen, logits - offset[:, None, :], float('-inf'))
                    weights = tl.exp2(logits)
                    slope = _products(v, keys, grad, queries, DEPTH, SUM, PRECISION)
                    slope = weights * (slope - mean[:, None, :])
                    key_result = _add_weighed(
                        key_result, 1, slope, q, queries, DEPTH, SUM, PRECISION
                    )
                    value_result = _add_weighed(
                        value_result, 1, weights, grad, queries, DEPTH, SUM, PRECISION
                    )
    scale = _times(alpha, scale, SUM)
    _store(grad_k, keys, key_result, scale, DEPTH)
    _store(grad_v, keys, value_result, _times(alpha, tl.full((), 1, SUM), SUM), DEPTH)
    if position_sums is not None:
        position_sums += (tl.program_id(0) * STRIPS + strip).to(tl.int64) * 2 * DEPTH
        for first in tl.static_range(0, DEPTH, SLICE):
            channels = first + tl.arange(0, SLICE)[None, :]
            for axis in tl.static_range(2):
                coordinate = y_of_key if axis == 1 else x_of_key
                sums = tl.sum(key_result[first // SLICE] * coordinate, 1) * -scale
                tl.store(position_sums + 2 * channels + axis, sums, mask=channels < DEPTH)


# Without a GPU, where the environment variable TRITON_INTERPRET is 1: for tests, and slow.
INTERPRETED = not isinstance(forward, triton.JITFunction)


def _stride_codes(tensor: Tensor) -> tuple[int, ...]:
    """Strides as odd numbers above 1: Triton compiles other variants for multiples of 16 and 1."""
    return tuple(2 * stride + 3 for stride in tensor.stride())


def _layout(tensor: Tensor) -> int:
    """What a kernel is compiled for: what is adjacent in the memory of a (B, N, D, H, W).

    Returns:
        -1 for nothing, 0 for columns. Or else channels are adjacent, and this is how many of them
        one instruction may load, because that divides all other strides.
    """
    batch, head, channel, row, column = tensor.stride()
    if channel == 1:
        return math.gcd(16 // tensor.element_size(), batch, head, row, column)
    return 0 if column == 1 else -1


def arrange(maps: Tensor, depth: int | None = None) -> Tensor:
    """Put the channels of (B, N, D, H, W) next to one another, where a copy pays.

    More than 32 channels of a head would otherwise take 2 to 3 times as many instructions, and more
    registers than there are. ``depth`` is their number, if it is not D.
    """
    if (depth or maps.shape[2]) <= 32 or maps.stride(2) == 1:
        return maps
    copy = maps.flatten(1, 2).contiguous(memory_format=torch.channels_last)
    return copy.unflatten(1, maps.shape[1:3])


def _offset_type(*tensors: Tensor) -> tl.dtype:
    """The type of the numbers of elements between pixels of an image."""
    sizes = (zip(tensor.shape[2:], tensor.stride()[2:], strict=True) for tensor in tensors)
    largest = max(sum((size - 1) * stride for size, stride in pairs) for pairs in sizes)
    return tl.int32 if largest < 2**31 else tl.int64


def _precision(dtype: torch.dtype) -> str:
    """How tensor cores, which have no float32, multiply it: as torch's flags for matrices say.

    Without TF32, three products of truncated numbers come as close as float32.
    """
    if dtype != torch.float32:
        return 'ieee'
    allowed = torch.backends.cuda.matmul.fp32_precision == 'tf32'  # follows allow_tf32
    return 'tf32' if allowed else 'tf32x3'


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """The type in which products of numbers of a tensor are added up."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


# How many pixels a warp meets at a time, for heads of up to 16, 32, 64 and more channels: as many
# as the registers of a GPU hold, of which ``benchmarks/count_sass.py`` tells. Two warps share 16
# pixels where it is 8.
_PIXELS_AT_A_TIME = {
    'half': {
        forward: (128, 128, 128, 128),
        backward_queries: (128, 128, 64, 32),
        backward_keys: (128, 64, 32, 16),
    },
    'tf32': {
        forward: (128, 128, 64, 32),
        backward_queries: (128, 64, 32, 16),
        backward_keys: (64, 32, 8, 8),
    },
    'tf32x3': {
        forward: (128, 64, 32, 8),
        backward_queries: (128, 32, 8, 8),
        backward_keys: (32, 16, 8, 8),
    },
}


# In a layer, coordinates and their sums take registers as well. These numbers differ there.
_PIXELS_IN_A_LAYER = {
    ('half', backward_keys): (128, 64, 16, 32),
    ('half', backward_queries): (128, 128, 64, 16),
    ('tf32', backward_queries): (128, 64, 16, 8),
    ('tf32', backward_keys): (64, 32, 16, 8),
    ('tf32x3', backward_queries): (64, 32, 8, 8),
}


def _shape(
    in_layer: bool,
    kernel: Any,
    spans: tuple[int, int],
    depth: int,
    dtype: torch.dtype,
    precision: str,
) -> dict[str, Any]:
    """How a kernel goes through what its strips meet, which is ``spans`` rows and columns."""
    row = 'half' if dtype.itemsize == 2 else 'tf32' if precision == 'tf32' else 'tf32x3'
    of_depths = _PIXELS_AT_A_TIME[row][kernel]
    if in_layer:
        of_depths = _PIXELS_IN_A_LAYER.get((row, kernel), of_depths)
    pixels = of_depths[bisect_left((16, 32, 64), depth)]
    block = max(pixels, PIXELS.value)
    columns = min(triton.next_power_of_2(spans[1]), block)
    rows = min(triton.next_power_of_2(spans[0]), block // columns)
    return dict(
        SPAN_ROWS=spans[0],
        SPAN_COLUMNS=spans[1],
        BLOCK_ROWS=max(rows, PIXELS.value // columns),
        BLOCK_COLUMNS=columns,
        num_warps=STRIPS.value * block // pixels,
        # All that there are, where the compiler would spill some registers to save others.
        maxnreg=None if kernel is forward or depth > 64 else 255,
        num_stages=1,
        enable_fp_fusion=True,
    )


def launch(
    kernel: Any,
    images: tuple[Tensor | None, ...],
    others: tuple[Tensor | None, ...],
    window: Sequence[Any],
    **constants: Any,
) -> None:
    """Run a kernel of attention.

    Args:
        kernel: The kernel.
        images: Its tensors ``(B, N, D, H, W)``, of which the first are q and k.
        others: Its other tensors.
        window: Kernel size, stride, dilation and scale.
        **constants: What else it is compiled for.
    """
    (q, k, *_), (kernel_size, stride, dilation, scale) = images, window
    assert q is not None
    assert k is not None
    if not has_data(q):
        return
    heads, depth, height, width = k.shape[1:]
    out_height, out_width = q.shape[3:]
    sizes = [heads, height, width, out_height, out_width]
    common = math.gcd(stride, dilation)
    step, hop = dilation // common, stride // common
    strip = (ROWS.value, COLUMNS.value)
    constants |= dict(STRIDE=stride, DILATION=dilation, KERNEL=kernel_size, STEP=step, DEPTH=depth)
    if kernel is backward_keys:
        constants['INVERSE'] = pow(hop, -1, step)
        rows, columns = ((side - 1 + kernel_size - 1) // hop + 1 for side in strip)
        radius = dilation * (kernel_size // 2)
        for side in (height, width):  # how many segments of a reflected axis windows reach
            last = max(side - 1, 1)
            sizes += [-(-radius // last), (side - 1 + radius) // last]  # before and after
        programs = count_tiles(k, dilation)
    else:
        constants['HOP'] = hop
        rows, columns = (hop * (side - 1) + kernel_size for side in strip)
        programs = count_tiles(q, step)
    precision, given = _precision(q.dtype), [image for image in images if image is not None]
    with torch.cuda.device_of(q):
        kernel[(programs,)](
            *images, *(image if image is None else _stride_codes(image) for image in images),
            *others, *sizes, scale, **constants,
            LAYOUTS=tuple(image if image is None else _layout(image) for image in images),
            OFFSET=_offset_type(*given), PRECISION=precision,
            **_shape(others[-1] is not None, kernel, (rows, columns), depth, q.dtype, precision),
        )  # fmt: skip


def has_data(tensor: Tensor) -> bool:
    """Whether there is something to compute, which there is not where shapes alone are known."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def count_tiles(image: Tensor, apart: int) -> int:
    """Number of tiles, whose pixels are so far apart, of all images of a (B, N, D, H, W)."""
    tile = (STRIPS.value * ROWS.value, COLUMNS.value)
    sides = zip(image.shape[3:], tile, strict=True)
    tiles = (min(apart, side) * -(-side // (apart * pixels)) for side, pixels in sides)
    return math.prod((*image.shape[:2], *tiles))


_WINDOW = 'int kernel_size, int stride, int dilation, float scale'


def run_forward(q: Tensor, k: Tensor, v: Tensor, *window: Any) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp."""
    out, lse = torch.empty_like(q), q.new_empty(q[:, :, 0].shape, dtype=sum_dtype(q))
    launch(forward, (q, k, v, out, None), (lse, None, None, None), window, SIDE=None)
    return out, lse


def run_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *window: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    delta = torch.empty_like(lse)
    grad_q, grad_k, grad_v = map(torch.empty_like, (q, k, v))
    launch(backward_queries, (q, k, v, out, grad, grad_q), (lse, delta, None, None), window)
    launch(backward_keys, (q, k, v, grad, grad_k, grad_v), (lse, delta, None, None, None), window)
    return grad_q, grad_k, grad_v


_attend = torch.library.custom_op(
    'acmix_mm::triton_neighborhood_attention_forward',
    run_forward,
    mutates_args=(),
    schema=f'(Tensor q, Tensor k, Tensor v, {_WINDOW}) -> (Tensor, Tensor)',
)
_differentiate = torch.library.custom_op(
    'acmix_mm::triton_neighborhood_attention_backward',
    run_backward,
    mutates_args=(),
    schema=f'(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_WINDOW})'
    ' -> (Tensor, Tensor, Tensor)',
)
_attend.register_fake(run_forward)  # kernels do not run without data
_differentiate.register_fake(run_backward)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *ctx.window = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.set_materialize_grads(False)  # that of the log-sum-exp is never used


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_differentiate(arrange(grad), *ctx.saved_tensors, *ctx.window), None, None, None, None


def no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    """Raise NotImplementedError."""
    raise NotImplementedError("backend 'triton' has no second derivatives, backend='reference' has")


_attend.register_autograd(_backward, setup_context=_save)
_differentiate.register_autograd(no_second_derivative)
register_flops('neighborhood_attention', prefix='triton_')


def neighborhood_attention(q: Tensor, k: Tensor, v: Tensor, *window: Any) -> Tensor:
    """See :func:`acmix_mm.ops.neighborhood_attention`."""
    return _attend(*map(arrange, (q, k, v)), *window)[0]
