# SPDX-License-Identifier: Apache-2.0
"""The weighted sum of the two paths of ACmix."""

from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.torch_compat import is_compiling
from ..ops.transforms import transforms_active
from .types import PathWeights


class PathMix(nn.Module):
    """``alpha * attention + beta * convolution`` (Pan et al., CVPR 2022, Fig. 2c).

    A layer computes the convolution path first, times :meth:`convolution_weight`, then the
    attention path, and hands both to this module. A path that is not used is None.

    Args:
        weights: ``'learned'`` (default): alpha and beta are parameters; ``'complementary'``: alpha
            is a parameter and beta is ``1 - alpha``; or a pair of numbers ``(alpha, beta)`` that
            stay fixed. A path whose fixed weight is 0 need not be computed.

    Attributes:
        alpha (nn.Parameter | float): Weight of the attention path; starts at 0.5 if it is learned.
        beta (nn.Parameter | float | None): Weight of the convolution path; starts at 0.5 if it is
            learned, and is None if it is ``1 - alpha``.
        uses_attention (bool): Whether the attention path is used.
        uses_convolution (bool): Whether the convolution path is used.

    Raises:
        ValueError: ``weights`` is none of these, or both numbers are 0.

    Examples:
        >>> mix = PathMix((1, 1))
        >>> mix(mix.convolution_weight() * torch.ones(2), torch.ones(2))
        tensor([2., 2.])
    """

    #: Parameters that :class:`acmix_mm.optim.ACmixOptimWrapperConstructor` does not decay.
    no_weight_decay = ('alpha', 'beta')

    def __init__(self, weights: PathWeights = 'learned') -> None:
        super().__init__()
        self.weights = weights
        self.alpha: nn.Parameter | float
        self.beta: nn.Parameter | float | None
        if weights in ('learned', 'complementary'):
            # One element, not a scalar: FSDP cannot shard parameters without a dimension.
            self.alpha = nn.Parameter(torch.empty(1))
            self.beta = nn.Parameter(torch.empty(1)) if weights == 'learned' else None
            self.reset_parameters()
        else:
            self.alpha, self.beta = _fixed(weights)
        learned = isinstance(self.alpha, nn.Parameter)
        self.uses_attention = bool(learned or self.alpha != 0)
        self.uses_convolution = bool(learned or self.beta != 0)

    def reset_parameters(self) -> None:
        """Start learned weights at 0.5."""
        for weight in self.parameters():
            nn.init.constant_(weight, 0.5)

    def convolution_weight(self) -> Tensor | float:
        """Return beta, a number or a tensor of one element.

        The convolution path is linear, so the layers multiply its few parameters by beta instead of
        its output map.
        """
        return 1 - self.alpha if self.beta is None else self.beta

    def forward(self, convolution: Tensor | None, attention: Tensor | None) -> Tensor:
        """Sum the paths.

        Args:
            convolution: Output of the convolution path, of any shape, already multiplied by
                :meth:`convolution_weight`; None if the path is not used.
            attention: Output of the attention path, of the same shape; None if the path is not
                used.

        Returns:
            Tensor: ``convolution + alpha * attention``.
        """
        if attention is None:
            assert convolution is not None, 'at least one path is used'
            return convolution
        alpha = self.alpha
        if convolution is None:
            # A copy even for alpha = 1: an in-place activation must not overwrite what the
            # attention operator has saved for its backward pass.
            return attention * (alpha if isinstance(alpha, float) else alpha.to(attention.dtype))
        if isinstance(alpha, float):
            return torch.add(convolution, attention, alpha=alpha)
        if not (alpha.requires_grad and torch.is_grad_enabled()):
            return torch.addcmul(convolution, attention, alpha.to(attention.dtype))
        if is_compiling() or transforms_active():
            # torch.compile fuses the formula, and torch.func differentiates it in every mode.
            return convolution + (alpha * attention.to(alpha.dtype)).to(attention.dtype)
        return _WeightedSum.apply(convolution, attention, alpha)

    def extra_repr(self) -> str:
        """Return the option as ``print(module)`` shows it."""
        return f'weights={self.weights!r}'


class _WeightedSum(torch.autograd.Function):
    """``convolution + alpha * attention``, without the two full-size temporaries of addcmul.

    Under autocast the paths are in half precision and alpha is not: its gradient, a sum over the
    whole map, is accumulated and returned in alpha's own precision.
    """

    @staticmethod
    def forward(convolution: Tensor, attention: Tensor, alpha: Tensor) -> Tensor:
        return torch.addcmul(convolution, attention, alpha.to(attention.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        _, attention, alpha = inputs
        ctx.save_for_backward(attention, alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention, alpha = ctx.saved_tensors
        if attention.dtype == alpha.dtype:
            grad_alpha = torch.dot(grad.reshape(-1), attention.reshape(-1))
        else:
            grad_alpha = (grad * attention.to(alpha.dtype)).sum()
        return grad, grad * alpha.to(grad.dtype), grad_alpha.view_as(alpha)


def _fixed(weights: PathWeights) -> tuple[float, float]:
    pair = isinstance(weights, tuple | list) and len(weights) == 2
    if not pair or not all(isinstance(w, Real) for w in weights) or not any(weights):
        raise ValueError(
            "path_weights must be 'learned', 'complementary' or a pair of numbers that are not "
            f'both 0, got {weights!r}'
        )
    alpha, beta = map(float, weights)
    return alpha, beta
