# SPDX-License-Identifier: Apache-2.0
"""Checkpoint formats of ``ACmixSwin``: ours, released Swin-ACmix, Swin of Microsoft and mmdet."""

import re
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from .formats import Family, Format, Rule, StateDict, rules_of_layer
from .released import PATHS


def to_unfold_order(x: Tensor) -> Tensor:
    """Reorder the input channels of patch merging from concatenation to ``nn.Unfold``.

    Microsoft's code and the released code concatenate the channels of the four pixels of a patch in
    the order top-left, bottom-left, top-right, bottom-right. ``nn.Unfold`` in mmcv's
    ``PatchMerging`` places the four pixels of each channel next to each other, in the order
    top-left, top-right, bottom-left, bottom-right.

    Args:
        x: Weight of the reduction or of the norm before it, ``(..., 4 C)``.

    Returns:
        Tensor: The reordered weight, ``(..., 4 C)``.

    Examples:
        >>> to_unfold_order(torch.arange(8)).tolist()
        [0, 4, 2, 6, 1, 5, 3, 7]
    """
    pixels = x.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
    return pixels.transpose(-1, -2).flatten(-2)


def resize_bias_table(table: Tensor, shape: torch.Size) -> Tensor:
    """Interpolate a relative position bias table to square windows of another size.

    Args:
        table: Bias table for windows of side M and N heads, ``((2 M - 1) ** 2, N)``.
        shape: Shape of the table for windows of side M', ``((2 M' - 1) ** 2, N)``.

    Returns:
        Tensor: The table of the given shape, with bicubic interpolation as in the released Swin
        code. If the numbers of heads differ, or the table is not one of square windows, it is
        returned unchanged.

    Examples:
        >>> resize_bias_table(torch.ones(13 ** 2, 3), torch.Size([23 ** 2, 3])).shape
        torch.Size([529, 3])
    """
    if table.ndim != 2 or table.shape[1] != shape[1]:
        return table
    old, new = (isqrt(rows) for rows in (table.shape[0], shape[0]))
    if old**2 != table.shape[0] or old == 0:
        return table
    grid = table.T.reshape(1, -1, old, old).float()
    grid = F.interpolate(grid, size=(new, new), mode='bicubic', align_corners=False)
    return grid.reshape(-1, new * new).T.to(table.dtype)


def _microsoft_rules(state_dict: StateDict) -> list[Rule]:
    """Return the rules for Microsoft's code and for the released code, which extends it."""
    stage, block = r'layers\.(\d+)\.', r'layers\.(\d+)\.blocks\.(\d+)\.'
    ours = r'stages.\1.blocks.\2.'
    stages = [re.match(stage, name) for name in state_dict]
    last = max(int(match[1]) for match in stages if match)
    return [
        Rule(r'patch_embed\.proj\.(.*)', r'patch_embed.projection.\1'),
        Rule(r'(patch_embed\.norm\..*|absolute_pos_embed)', r'\1'),
        *rules_of_layer(block + r'attn\.', ours + 'attn.', PATHS),
        *_block_rules(block, block + r'attn\.'),
        Rule(block + r'mlp\.fc1\.(.*)', ours + r'ffn.layers.0.0.\3'),
        Rule(block + r'mlp\.fc2\.(.*)', ours + r'ffn.layers.1.\3'),
        Rule(stage + r'downsample\.(.*)', r'stages.\1.downsample.\2', to_unfold_order),
        # The final norm of the classifier becomes the norm of the last output.
        Rule(r'norm\.(.*)', rf'norm{last}.\1'),
        Rule(r'head\..*', None, reason='classifier head'),
    ]


def _block_rules(block: str, attention: str) -> list[Rule]:
    ours = r'stages.\1.blocks.\2.'
    return [
        Rule(
            rf'{attention}relative_position_index|{block}attn_mask',
            None,
            reason='computed from the sizes of window and image',
        ),
        Rule(attention + r'((?:qkv|proj)\..*|relative_position_bias_table)', ours + r'attn.\3'),
        Rule(block + r'(norm[12]\..*)', ours + r'\3'),
    ]


_MM_BLOCK = r'stages\.(\d+)\.blocks\.(\d+)\.'
_MM_RULES = (
    Rule(r'((?:patch_embed|norm\d)\..*|absolute_pos_embed)', r'\1'),
    *_block_rules(_MM_BLOCK, _MM_BLOCK + r'attn\.w_msa\.'),
    Rule(r'(stages\.\d+\.(?:blocks\.\d+\.ffn|downsample)\..*)', r'\1'),
)

FAMILY = Family(
    name='ACmixSwin',
    marker=r'stages\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table',
    foreign=(
        Format(
            name='released Swin-ACmix classifier',
            marker=r'layers\.\d+\.blocks\.\d+\.attn\.dep_conv\.weight',
            rules=_microsoft_rules,
        ),
        Format(
            name='plain Swin (Microsoft)',
            marker=r'layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table',
            rules=_microsoft_rules,
        ),
        Format(
            name='plain Swin (mmdet, mmseg, mmpretrain)',
            marker=r'stages\.\d+\.blocks\.\d+\.attn\.w_msa\.qkv\.weight',
            rules=_MM_RULES,
        ),
    ),
    resize={'relative_position_bias_table': resize_bias_table},
)
