# SPDX-License-Identifier: Apache-2.0
"""Dense attention by torch."""

from contextlib import nullcontext

import torch.nn.functional as F
from torch import Tensor

from .torch_compat import unfused_attention
from .transforms import transforms_active


def scaled_dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """As :func:`torch.nn.functional.scaled_dot_product_attention`, differentiable in every mode.

    torch chooses its fused kernels within :mod:`torch.func` as well, where they fail: they have no
    forward derivatives and, on CPUs, no gradient of the mask.

    Args:
        q: ``(..., L, D)``.
        k: ``(..., S, D)``.
        v: ``(..., S, D)``.
        mask: ``(..., L, S)``, bool or a summand of the logits. Default: None.
        dropout_p: Dropout probability of the attention weights. Default: 0.
        scale: Factor of the logits; ``D ** -0.5`` if None (default).

    Returns:
        Tensor: ``(..., L, D)``.

    Examples:
        >>> import torch
        >>> qkv = torch.randn(3, 2, 5, 4).unbind()
        >>> out, tangent = torch.func.jvp(scaled_dot_product_attention, qkv, qkv)
        >>> tangent.shape
        torch.Size([2, 5, 4])
    """
    with unfused_attention() if transforms_active() else nullcontext():
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout_p, scale=scale
        )
