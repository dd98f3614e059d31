# SPDX-License-Identifier: Apache-2.0
"""Neighbourhood attention by halo tiles and ``F.scaled_dot_product_attention``.

Queries are cut into square tiles. The keys that any query of a tile sees form one square too, the
tile and its halo, so that attention inside a tile is dense attention under a fixed mask, which
torch runs fused on every device.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..attention import scaled_dot_product_attention
from ..padding import reflect_pad2d
from ..transforms import transforms_active

# Queries per tile side. 8 was the fastest of 4, 6, 8, 12, 16 on a CPU for 7x7 windows: smaller
# tiles copy more halo, larger ones compute more masked logits.
TILE = 8


def neighborhood_attention(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, stride: int, dilation: int, scale: float
) -> Tensor:
    """See :func:`acmix_mm.ops.neighborhood_attention`."""
    window = (kernel_size, stride, dilation, scale)
    # torch 2.1 cannot run tensors without data twice. Transforms have no hooks for saved tensors.
    if not torch.is_grad_enabled() or q.is_meta or transforms_active():
        return _neighborhood_attention(q, k, v, *window)
    # Keys and values with their halos are several times as large as without: they are made again
    # in the backward pass instead of kept.
    return checkpoint(
        _neighborhood_attention, q, k, v, *window, use_reentrant=False, preserve_rng_state=False
    )


def cannot_run(*_: Any) -> str | None:
    """Return None: every device has ``F.scaled_dot_product_attention``."""
    return None


def _neighborhood_attention(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, stride: int, dilation: int, scale: float
) -> Tensor:
    padding = dilation * (kernel_size // 2)
    k, v = (reflect_pad2d(x.flatten(0, 1), padding).unflatten(0, x.shape[:2]) for x in (k, v))
    if dilation == 1 or stride > 1:
        return _attend(q, k, v, kernel_size, stride, dilation, scale)
    # Pixels of different phase never meet: every phase is a map of its own, without dilation.
    height, width = q.shape[-2:]
    batch_size = len(q)
    q, k, v = (_split_phases(x, dilation) for x in (q, k, v))
    out = _attend(q, k, v, kernel_size, 1, 1, scale)
    return _merge_phases(out, dilation, batch_size)[..., :height, :width]


def _split_phases(x: Tensor, dilation: int) -> Tensor:
    """(B, N, D, H, W) -> (B * d * d, N, D, ceil(H / d), ceil(W / d)), zeros added at the end."""
    height, width = x.shape[-2:]
    x = F.pad(x, (0, -width % dilation, 0, -height % dilation))
    x = x.unflatten(-1, (-1, dilation)).unflatten(-3, (-1, dilation))
    return x.permute(0, 4, 6, 1, 2, 3, 5).flatten(0, 2)


def _merge_phases(x: Tensor, dilation: int, batch_size: int) -> Tensor:
    """Inverse of :func:`_split_phases`, with the added rows and columns still there."""
    x = x.unflatten(0, (batch_size, dilation, dilation))
    return x.permute(0, 3, 4, 5, 1, 6, 2).flatten(-4, -3).flatten(-2, -1)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, stride: int, dilation: int, scale: float
) -> Tensor:
    """Takes q (B, N, D, Ho, Wo), and k, v padded by the halo. Returns (B, N, D, Ho, Wo)."""
    batch_size, _, _, height, width = q.shape
    tile = min(TILE, max(height, width))
    rows, columns = -(-height // tile), -(-width // tile)
    span = stride * (tile - 1) + dilation * (kernel_size - 1) + 1

    def cut(x: Tensor, size: int, step: int) -> Tensor:
        """Overlapping squares of x: (B * tiles, N, size * size, D)."""
        bottom = (rows - 1) * step + size - x.shape[-2]
        right = (columns - 1) * step + size - x.shape[-1]
        # A negative pad crops what no query reads (possible with a stride only).
        x = F.pad(x, (0, right, 0, bottom))
        x = x.unfold(3, size, step).unfold(4, size, step)
        return x.permute(0, 3, 4, 1, 5, 6, 2).flatten(4, 5).flatten(0, 2)

    mask = window_mask(tile, span, kernel_size, stride, dilation, q.device)
    out = scaled_dot_product_attention(
        cut(q, tile, tile),
        cut(k, span, stride * tile),
        cut(v, span, stride * tile),
        mask,
        scale=scale,
    )
    out = out.unflatten(2, (tile, tile)).unflatten(0, (batch_size, rows, columns))
    out = out.permute(0, 3, 6, 1, 4, 2, 5).flatten(5, 6).flatten(3, 4)
    return out[..., :height, :width]


def window_mask(
    tile: int, span: int, kernel_size: int, stride: int, dilation: int, device: torch.device
) -> Tensor:
    """Which pixel of the halo belongs to which query's window: bool (tile * tile, span * span)."""
    offset = torch.arange(span, device=device) - stride * torch.arange(tile, device=device)[:, None]
    seen = (offset >= 0) & (offset <= dilation * (kernel_size - 1)) & (offset % dilation == 0)
    return (seen[:, None, :, None] & seen[None, :, None, :]).flatten(2, 3).flatten(0, 1)
