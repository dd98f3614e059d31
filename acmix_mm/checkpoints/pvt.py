# SPDX-License-Identifier: Apache-2.0
"""Checkpoint formats of ``ACmixPVT``: ours, plain PVT and PVTv2 of their authors and of mmdet."""

import re
from collections.abc import Sequence
from math import isqrt

import torch.nn.functional as F
from torch import Tensor

from .formats import Family, Format, Rule, StateDict


def position_map(tokens: Tensor) -> Tensor:
    """Reshape a position embedding from tokens to a map.

    Args:
        tokens: Position embedding of the pixels of a square map in row-major order, ``(1, L, C)``.
            In the last stage of the authors' code it begins with one more token, for the class,
            which is removed.

    Returns:
        Tensor: The position embedding ``(1, C, H, W)`` with ``H = W``.

    Raises:
        ValueError: The tokens do not form a square map.

    Examples:
        >>> import torch
        >>> position_map(torch.zeros(1, 50, 512)).shape
        torch.Size([1, 512, 7, 7])
    """
    length = tokens.shape[1]
    side = isqrt(length)
    if length not in (side**2, side**2 + 1):
        raise ValueError(
            f'a position embedding of {length} tokens does not form a square map, and the '
            'checkpoint does not contain its height and width: reshape it to (1, C, H, W)'
        )
    return tokens[:, -(side**2) :].transpose(1, 2).unflatten(2, (side, side))


def resize_position(position: Tensor, shape: Sequence[int]) -> Tensor:
    """Interpolate a position embedding to another size.

    Args:
        position: Position embedding ``(1, C, H, W)``.
        shape: Shape of the result, ``(1, C, H', W')``.

    Returns:
        Tensor: The position embedding of the given shape, with bilinear interpolation as in the
        forward pass. If the numbers of channels differ, or ``position`` is not a map, it is
        returned unchanged.

    Examples:
        >>> import torch
        >>> resize_position(torch.ones(1, 8, 7, 7), (1, 8, 9, 12)).shape
        torch.Size([1, 8, 9, 12])
    """
    if position.ndim != 4 or position.shape[1] != shape[1] or position.numel() == 0:
        return position
    resized = F.interpolate(position.float(), shape[2:], mode='bilinear', align_corners=False)
    return resized.to(position.dtype)


def _authors_rules(state_dict: StateDict) -> list[Rule]:
    rules = []
    for stage in _numbers(r'patch_embed(\d+)\.proj\.weight', state_dict):
        block, blocks = rf'block{stage}\.(\d+)\.', rf'stages.{stage - 1}.blocks.\1.'
        embed, ours = rf'patch_embed{stage}\.', rf'stages.{stage - 1}.patch_embed.'
        rules += [
            Rule(rf'pos_embed{stage}', f'stages.{stage - 1}.pos_embed', position_map),
            Rule(embed + r'proj\.(.*)', ours + r'projection.\1'),
            Rule(embed + r'(norm\..*)', ours + r'\1'),
            Rule(block + r'attn\.q\.(.*)', blocks + r'attn.qkv.\2'),
            Rule(block + r'attn\.kv\.(.*)', blocks + r'attn.qkv.\2'),
            Rule(block + r'(attn\.(?:proj|sr|norm)\..*|norm[12]\..*)', blocks + r'\2'),
            Rule(block + r'mlp\.fc1\.(.*)', blocks + r'ffn.layers.0.0.\2'),
            Rule(block + r'mlp\.dwconv\.dwconv\.(.*)', blocks + r'ffn.layers.0.1.\2'),
            Rule(block + r'mlp\.fc2\.(.*)', blocks + r'ffn.layers.1.\2'),
            Rule(rf'norm{stage}\.(.*)', rf'stages.{stage - 1}.norm.\1'),
        ]
    reason = 'class token and classifier'
    return [*rules, Rule(r'cls_token|norm\..*|head\..*', None, reason=reason)]


def _mmdet_rules(state_dict: StateDict) -> list[Rule]:
    rules = [
        Rule(r'layers\.(\d+)\.1\.0\.pos_embed', r'stages.\1.pos_embed', position_map),
        Rule(r'layers\.(\d+)\.0\.(.*)', r'stages.\1.patch_embed.\2'),
        Rule(r'layers\.(\d+)\.2\.(.*)', r'stages.\1.norm.\2'),
    ]
    numbers = _numbers(r'layers\.\d+\.1\.(\d+)\.norm1\.weight', state_dict)
    # In mmdet's lists of blocks, the first item is the position embedding, if there is one.
    for number in numbers:
        block = rf'layers\.(\d+)\.1\.{number}\.'
        ours = rf'stages.\1.blocks.{number - numbers[0]}.'
        rules += [
            Rule(block + r'attn\.attn\.in_proj_(.*)', ours + r'attn.qkv.\2'),
            Rule(block + r'attn\.attn\.out_proj\.(.*)', ours + r'attn.proj.\2'),
            Rule(block + r'(attn\.(?:sr|norm)\..*|norm[12]\..*)', ours + r'\2'),
            # mmdet's feed-forward layers are 1x1 convolutions, ours are linear. The last one is
            # number 3, or 4 if the depthwise convolution is number 1.
            Rule(block + r'ffn\.layers\.0\.weight', ours + r'ffn.layers.0.0.weight', _to_linear),
            Rule(block + r'ffn\.layers\.[34]\.weight', ours + r'ffn.layers.1.weight', _to_linear),
            Rule(block + r'ffn\.layers\.0\.bias', ours + r'ffn.layers.0.0.bias'),
            Rule(block + r'ffn\.layers\.1\.(.*)', ours + r'ffn.layers.0.1.\2'),
            Rule(block + r'ffn\.layers\.[34]\.bias', ours + r'ffn.layers.1.bias'),
        ]
    return rules


def _to_linear(weight: Tensor) -> Tensor:
    return weight.flatten(1)


def _numbers(pattern: str, state_dict: StateDict) -> list[int]:
    """Return the sorted, distinct numbers that the group of a pattern matches in the names."""
    matches = (re.fullmatch(pattern, name) for name in state_dict)
    return sorted({int(match[1]) for match in matches if match})


FAMILY = Family(
    name='ACmixPVT',
    marker=r'stages\.\d+\.patch_embed\.projection\.weight',
    foreign=(
        Format(
            name='plain PVT (authors)',
            marker=r'patch_embed\d+\.proj\.weight',
            rules=_authors_rules,
        ),
        Format(
            name='plain PVT (mmdet)',
            marker=r'layers\.\d+\.0\.projection\.weight',
            rules=_mmdet_rules,
        ),
    ),
    resize={'pos_embed': resize_position},
)
