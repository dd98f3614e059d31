"""The projections as one call of torch each."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor, parts: int) -> tuple[Tensor, ...]:
    """See :func:`acmix_mm.ops.pointwise_conv`."""
    if x.device.type != 'cpu':
        return F.conv2d(x, weight[..., None, None], bias).chunk(parts, 1)
    # A matrix product: oneDNN would reorder the whole map before and after.
    out = torch.baddbmm(bias.unsqueeze(1), weight.expand(len(x), -1, -1), x.flatten(2))
    return out.unflatten(2, x.shape[2:]).chunk(parts, 1)
