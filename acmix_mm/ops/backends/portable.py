# SPDX-License-Identifier: Apache-2.0
"""Operators of windows for graphs that other programs run.

Every step is an operator of ONNX, few are needed, and heights, widths and batch sizes may stay
open: where a pixel of a window lies, reflected at the border or not, is worked out by tensors.
"""

from typing import Any

import torch
from torch import Tensor

from ..padding import reflect, reflect_pad2d
from .tiled import TILE, window_mask


def neighborhood_attention(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, stride: int, dilation: int, scale: float
) -> Tensor:
    """See :func:`acmix_mm.ops.neighborhood_attention`; by tiles, as the backend ``tiled``."""
    heads, depth, height, width = q.shape[1:]
    # Rounded up without negative numbers, whose quotients other programs round towards 0.
    rows, columns = (height + TILE - 1) // TILE, (width + TILE - 1) // TILE
    # One tile too many: torch.export fixes the length of an axis that may be 1.
    number = torch.arange(rows * columns + 1, device=q.device)
    row = number.div(torch.full_like(number[:1], columns), rounding_mode='floor')
    tiles = row, number - row * columns
    span = stride * (TILE - 1) + dilation * (kernel_size - 1) + 1
    halo = dilation * (kernel_size // 2)
    q = _cut(scale * q, tiles, TILE, TILE, 0)
    k, v = _cut(torch.cat([k, v], 1), tiles, span, stride * TILE, halo).chunk(2, 1)

    mask = window_mask(TILE, span, kernel_size, stride, dilation, q.device)
    mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float('-inf'))
    out = (q @ k.transpose(2, 3) + mask).softmax(-1) @ v

    out = out.transpose(1, 2).reshape(-1, (rows * columns + 1) * TILE**2, heads, depth)
    y, x = (torch.arange(length, device=q.device) for length in (height, width))
    # Where the pixels are: in which tile, and in which place of it.
    down, right = (index.div(TILE, rounding_mode='floor') for index in (y, x))
    down, right = (
        down * columns * TILE**2 + (y - down * TILE) * TILE,
        right * TILE**2 + (x - right * TILE),
    )
    out = out.index_select(1, (down[:, None] + right).flatten()).permute(0, 2, 3, 1)
    return out.reshape(-1, heads, depth, height, width)


def _cut(maps: Tensor, tiles: tuple[Tensor, Tensor], size: int, step: int, halo: int) -> Tensor:
    """Cut squares out of reflected maps, (B, N, D, H, W) -> (B * tiles, N, size * size, D).

    Args:
        maps: What to cut.
        tiles: Row and column of each tile.
        size: Side of a square in pixels.
        step: Pixels between the corners of tiles.
        halo: How far the first tile begins outside the map.
    """
    heads, depth, height, width = maps.shape[1:]
    places = torch.arange(size, device=maps.device) - halo
    y, x = (
        reflect(step * tile[:, None] + places, length)
        for tile, length in zip(tiles, (height, width), strict=True)
    )
    pixels = (y[:, :, None] * width + x[:, None, :]).flatten()
    maps = maps.flatten(3).permute(0, 3, 1, 2).index_select(1, pixels)
    return maps.reshape(-1, size**2, heads, depth).transpose(1, 2)


def neighborhood_aggregation(weights: Tensor, v: Tensor, kernel_size: int) -> Tensor:
    """See :func:`acmix_mm.ops.neighborhood_aggregation`; one row of the windows at a time."""
    height = v.shape[2]
    columns = _columns(v, kernel_size).unflatten(1, (-1, weights.shape[1]))
    out: Any = 0
    for top, weight in enumerate(weights.unsqueeze(1).split(kernel_size, 3)):
        out = out + (weight * columns.narrow(4, top, height)).sum(3)
    return out.flatten(1, 2)


def windows(x: Tensor, kernel_size: int) -> Tensor:
    """As ``F.unfold`` of the reflection-padded map: (B, C, H, W) -> (B, C * K * K, H, W)."""
    height = x.shape[2]
    columns = _columns(x, kernel_size).unsqueeze(2)
    rows = [columns.narrow(4, top, height) for top in range(kernel_size)]
    return torch.cat(rows, 2).flatten(1, 3)


def _columns(x: Tensor, kernel_size: int) -> Tensor:
    """The pixels of each column of the windows: (B, C, H, W) -> (B, C, K, H + K - 1, W)."""
    width = x.shape[3]
    x = reflect_pad2d(x, kernel_size // 2).unsqueeze(2)
    return torch.cat([x.narrow(4, left, width) for left in range(kernel_size)], 2)


def cannot_run(*_: Any) -> str | None:
    """Return None: torch's own operators run wherever torch does."""
    return None


def by_name_only(*_: Any) -> str | None:
    """Return why automatic choice does not take this backend."""
    return 'it is for graphs that other programs run; the other backends are faster in torch'
