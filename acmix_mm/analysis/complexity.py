"""Counts parameters and multiply-adds of models with ACmix layers.

:class:`torch.utils.flop_counter.FlopCounterMode` counts what torch's operators do. Left alone it
would see an ACmix operator as whatever its backend is written in: tiles with their halos, composed
weights, or nothing at all for a fused kernel. Here every operator counts by its definition, the
same for all backends, which is also how the papers count.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..ops import neighborhood_aggregation, neighborhood_attention, shift_conv


@dataclass(frozen=True)
class Complexity:
    """Size and work of a model.

    Attributes:
        params: Number of parameters.
        macs: Multiply-adds of convolutions, matrix products and attention in one forward pass,
            which papers on backbones call FLOPs. Norms, activations and biases are left out.
    """

    params: int
    macs: int


def measure_complexity(model: nn.Module, *inputs: Any) -> Complexity:
    """Count a model's parameters and the multiply-adds of one forward pass in eval mode.

    On the ``meta`` device nothing is computed, so that the largest models take a moment.

    Args:
        model: Any module.
        *inputs: Of its ``forward``.

    Examples:
        >>> from acmix_mm.backbones import ACmixResNet
        >>> with torch.device('meta'):
        ...     measure_complexity(ACmixResNet(26), torch.empty(1, 3, 224, 224)).params
        8438816
    """
    training = model.training
    torch_operators = FlopCounterMode(display=False, custom_mapping=_UNKNOWN_TO_TORCH)
    try:
        with torch.no_grad(), torch_operators, _OurOperators() as our_operators:
            model.eval()(*inputs)
    finally:
        model.train(training)
    params = sum(parameter.numel() for parameter in model.parameters())
    return Complexity(params, torch_operators.get_total_flops() // 2 + our_operators.macs)


class _OurOperators(TorchFunctionMode):
    """Counts the calls of our operators instead of running them."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(
        self, func: Callable, types: Sequence, args: Sequence = (), kwargs: dict | None = None
    ) -> Any:
        formula = _FORMULAS.get(func)
        if formula is None:
            return func(*args, **kwargs or {})
        macs, shape = formula(*args, **kwargs or {})
        self.macs += macs
        return args[0].new_zeros(shape)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, *_: Any, **__: Any
) -> tuple[int, Sequence[int]]:
    """A logit and a weighted value for each neighbour."""
    return 2 * q.numel() * kernel_size**2, q.shape


def _aggregation(weights: Tensor, v: Tensor, kernel_size: int) -> tuple[int, Sequence[int]]:
    """A weighted value for each neighbour."""
    return v.numel() * kernel_size**2, v.shape


def _shift_conv(
    maps: Tensor,
    fc_weight: Tensor,
    fc_bias: Tensor | None,
    kernel: Tensor,
    stride: int = 1,
    *_: Any,
    **__: Any,
) -> tuple[int, Sequence[int]]:
    """The fully connected layer at every pixel of the maps, then the grouped convolution."""
    batch_size, _maps, groups, *size = maps.shape
    pairs, channels, *filter_shape = kernel.shape
    out_shape = (batch_size, channels, *(-(-side // stride) for side in size))
    fc = batch_size * groups * prod(size) * prod(fc_weight.shape)
    return fc + pairs * prod(out_shape) * prod(filter_shape), out_shape


def _attention_on_cpu(
    q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any
) -> int:
    return sdpa_flop_count(q, k, v)


_FORMULAS: dict[Callable, Callable[..., tuple[int, Sequence[int]]]] = {
    neighborhood_attention: _attention,
    neighborhood_aggregation: _aggregation,
    shift_conv: _shift_conv,
}
# torch 2.13 has formulas for the attention kernels of GPUs alone.
_UNKNOWN_TO_TORCH = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_on_cpu,
}
