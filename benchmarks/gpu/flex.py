# SPDX-License-Identifier: Apache-2.0
"""The same attention through FlexAttention of torch, as an outside candidate."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class FlexNeighborhood:
    """Attention of tiles of queries to tiles of padded keys, under a mask.

    Args:
        height: Height of the maps.
        width: Width of the maps.
        kernel_size: Side of the window, at most 9.
        block: Pixels of a tile, which has 8 rows.
        device: Type of the device.
    """

    def __init__(self, height: int, width: int, kernel_size: int, block: int, device: str) -> None:
        from torch.nn.attention.flex_attention import BlockMask, flex_attention

        self.size, self.padding = (height, width), kernel_size // 2
        down, across = 8, block // 8
        rows, columns = -(-height // down), -(-width // across)
        self.shape = rows, columns, down, across
        # A tile of queries meets four tiles of keys, which begin half a window further up and left.
        number, wider = rows * columns, columns + 1
        index = torch.zeros(1, 1, number, (rows + 1) * wider, dtype=torch.int32, device=device)
        corner = (torch.arange(rows)[:, None] * wider + torch.arange(columns)).flatten()
        index[..., :4] = corner[:, None] + torch.tensor([0, 1, wider, wider + 1])

        def seen(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            tile, other = q // block, k // block
            y = (
                (other // wider - tile // columns) * down
                + k % block // across
                - q % block // across
            )
            x = (other % wider - tile % columns) * across + k % across - q % across
            return (y >= 0) & (y < kernel_size) & (x >= 0) & (x < kernel_size)

        self.mask = BlockMask.from_kv_blocks(
            torch.full_like(index[..., 0], 4),
            index,
            BLOCK_SIZE=block,
            mask_mod=seen,
            seq_lengths=(number * block, (rows + 1) * wider * block),
        )
        on_gpu = device == 'cuda'
        self.attend = torch.compile(flex_attention, dynamic=False) if on_gpu else flex_attention
        self.options: dict[str, Any] = dict(BLOCK_M=64) if on_gpu else {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend, (B, N, D, H, W) -> (B, N, D, H, W)."""
        k, v = (
            F.pad(t.flatten(0, 1), (self.padding,) * 4, 'reflect').unflatten(0, t.shape[:2])
            for t in (k, v)
        )
        options: Any = self.options
        if options:
            options = dict(options, BLOCK_N=32 if q.dtype == torch.float32 else 64)
        q, k, v = self._tiles(q, 0), self._tiles(k, 1), self._tiles(v, 1)
        out = self.attend(q, k, v, block_mask=self.mask, kernel_options=options)
        out = out.unflatten(2, self.shape).permute(0, 1, 6, 2, 4, 3, 5)
        return out.flatten(5, 6).flatten(3, 4)[..., : self.size[0], : self.size[1]]

    def _tiles(self, x: Tensor, more: int) -> Tensor:
        """(B, N, D, H, W) -> (B, N, tiles and pixels of a tile, D), padded to whole tiles."""
        rows, columns, down, across = self.shape
        bottom = (rows + more) * down - x.shape[-2]
        right = (columns + more) * across - x.shape[-1]
        x = F.pad(x, (0, right, 0, bottom))
        return (
            x.unflatten(4, (-1, across))
            .unflatten(3, (-1, down))
            .permute(0, 1, 3, 5, 4, 6, 2)
            .flatten(2, 5)
        )
