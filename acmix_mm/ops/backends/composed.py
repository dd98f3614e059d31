# SPDX-License-Identifier: Apache-2.0
"""The shift-convolution path as one grouped convolution.

The fully connected layer and the shifting convolution are both linear, so their small weights are
multiplied first; the k_c^2 intermediate maps never exist.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def compose(fc_weight: Tensor, kernel: Tensor) -> Tensor:
    """One layer for both: (P, k*k, M) and (P, C, k*k, k, k) -> (C, M, k, k)."""
    # Contiguous, or torch 2.13 gets the weight's gradient wrong where oneDNN does not run (float64)
    # and a single image comes with its channels innermost.
    return torch.einsum('pcihw,pim->cmhw', kernel, fc_weight).contiguous()


def shift_conv(
    maps: Sequence[Tensor],
    fc_weight: Tensor,
    fc_bias: Tensor | None,
    kernel: Tensor,
    stride: int,
    dilation: int,
) -> Tensor:
    """See :func:`acmix_mm.ops.shift_conv`."""
    stacked = maps[0] if len(maps) == 1 else torch.cat([*maps], 1)
    groups, size = stacked.shape[2], kernel.shape[-1]
    padding = dilation * (size // 2)
    weight = compose(fc_weight, kernel)
    maps_of_groups = stacked.transpose(1, 2).flatten(1, 2)
    out = F.conv2d(maps_of_groups, weight, None, stride, padding, dilation, groups)
    if fc_bias is None:
        return out
    # The bias is added before the zero padding: outside the map there is none.
    inside = stacked.new_ones(1, 1, *stacked.shape[-2:])
    bias = torch.einsum('pcihw,pi->chw', kernel, fc_bias).unsqueeze(1)
    return out + F.conv2d(inside, bias.to(inside.dtype), None, stride, padding, dilation)


def cannot_run(*tensors: Tensor) -> str | None:
    """Return None: a grouped convolution runs wherever torch does."""
    return None
