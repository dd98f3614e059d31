# SPDX-License-Identifier: Apache-2.0
"""The 1x1 projection from which the maps of the convolution path come."""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Projection(NamedTuple):
    """A 1x1 convolution of the input of an ACmix layer to M maps of G channels.

    Attributes:
        x: Input of the layer, ``(B, C_in, H, W)``.
        weight: ``(M * G, C_in)``, map by map.
        bias: ``(M * G,)``, or None.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None


def complete_maps(
    maps: Sequence[Tensor], projection: Projection | None, num_maps: int
) -> Sequence[Tensor]:
    """Return all maps of the convolution path, after projecting those that are not given.

    Args:
        maps: ``(B, M_i, G, H, W)``, the first ones of the M maps.
        projection: Where the others come from. None if all are given.
        num_maps: M.
    """
    given = sum(tensor.shape[1] for tensor in maps)
    if projection is None or given == num_maps:
        return maps
    x, weight, bias = projection
    channels, dtype = maps[0].shape[2], maps[0].dtype
    weight = weight[given * channels :].to(dtype)
    bias = None if bias is None else bias[given * channels :].to(dtype)
    # Not `movedim`, of which the exporter of TorchScript makes a negative axis, invalid in ONNX.
    missing = F.linear(x.permute(0, 2, 3, 1).to(dtype), weight, bias).permute(0, 3, 1, 2)
    return *maps, missing.unflatten(1, (-1, channels))
