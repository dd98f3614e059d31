"""How the two paths of ACmix are weighed."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

PathWeights = str | Sequence[float]


class PathMix(nn.Module):
    """``alpha * attention + beta * convolution`` (Pan et al., CVPR 2022, Fig. 2c).

    Args:
        weights: ``'learned'``: alpha and beta are parameters; ``'complementary'``: alpha is a
            parameter and beta is ``1 - alpha``; or a pair of numbers ``(alpha, beta)`` that stay
            fixed. A path whose fixed weight is 0 is not computed.

    Attributes:
        alpha (nn.Parameter | float): Weight of the attention path, 0.5 at the start if learned.
        beta (nn.Parameter | float | None): Weight of the convolution path, likewise; None if it is
            ``1 - alpha``.
        uses_attention (bool): Whether the attention path is computed.
        uses_convolution (bool): Whether the convolution path is computed.

    Raises:
        ValueError: ``weights`` is none of these, or both numbers are 0.

    Examples:
        >>> mix = PathMix((1, 1))
        >>> mix(lambda: torch.ones(2), lambda weight: weight * torch.ones(2))
        tensor([2., 2.])
    """

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
        self.uses_attention = learned or self.alpha != 0
        self.uses_convolution = learned or self.beta != 0

    def reset_parameters(self) -> None:
        """Start learned weights at 0.5."""
        for weight in self.parameters():
            nn.init.constant_(weight, 0.5)

    def forward(
        self, attention: Callable[[], Tensor], convolution: Callable[[Tensor | float], Tensor]
    ) -> Tensor:
        """Weigh the results of two functions, calling only those that count.

        Args:
            attention: Returns the attention path, of any shape.
            convolution: Returns the convolution path, of the same shape, times the weight that it
                is given: the path is linear, so that it can weigh its few parameters instead of
                its map.

        Returns:
            Tensor: The weighted sum.
        """
        beta = 1 - self.alpha if self.beta is None else self.beta
        if not self.uses_attention:
            return convolution(beta)
        # The convolution comes first, so that the backward pass, which goes the other way round,
        # does not hold its gradients while that of the attention takes the most memory.
        out = convolution(beta) if self.uses_convolution else None
        path = attention()
        # Under autocast the paths are in half precision and the parameters are not.
        alpha = self.alpha if isinstance(self.alpha, float) else self.alpha.to(path.dtype)
        if out is None:
            return path if alpha == 1 else alpha * path
        if isinstance(alpha, float):
            return torch.add(out, path, alpha=alpha)
        if alpha.requires_grad and torch.is_grad_enabled():
            return _WeighedSum.apply(out, path, alpha)
        return torch.addcmul(out, path, alpha)

    def extra_repr(self) -> str:
        """The option, as ``print(module)`` shows it."""
        return f'weights={self.weights!r}'


class _WeighedSum(torch.autograd.Function):
    """``convolution + alpha * attention``; for alpha's gradient torch itself makes two maps."""

    @staticmethod
    def forward(ctx: Any, convolution: Tensor, attention: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(attention, alpha)
        return torch.addcmul(convolution, attention, alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention, alpha = ctx.saved_tensors
        grad_alpha = torch.dot(grad.reshape(-1), attention.reshape(-1)).view_as(alpha)
        return grad, grad * alpha, grad_alpha


def _fixed(weights: PathWeights) -> tuple[float, float]:
    pair = isinstance(weights, tuple | list) and len(weights) == 2
    if not pair or not all(isinstance(w, int | float) for w in weights) or not any(weights):
        raise ValueError(
            "path_weights must be 'learned', 'complementary' or a pair of numbers that are not "
            f'both 0, got {weights!r}'
        )
    alpha, beta = map(float, weights)
    return alpha, beta
