# SPDX-License-Identifier: Apache-2.0
"""Count parameters and multiply-adds of models with ACmix layers.

:class:`torch.utils.flop_counter.FlopCounterMode` counts the work of torch's operators. For an ACmix
operator it would count what the backend happens to compute: tiles with their halos, composed
weights, or nothing at all for a fused kernel. Here every ACmix operator is counted by its
definition, which gives the same number for all backends and is also how the papers count.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from .ops import (
    Projection,
    neighborhood_aggregation,
    neighborhood_attention,
    pointwise_conv,
    shift_conv,
    window_attention,
)


@dataclass(frozen=True)
class Complexity:
    """Number of parameters and multiply-adds of a model.

    Attributes:
        params: Number of parameters.
        macs: Multiply-adds of convolutions, matrix products and attention in one forward pass,
            which papers on backbones call FLOPs. Norms, activations and biases are not counted.
    """

    params: int
    macs: int


def measure_complexity(model: nn.Module, *inputs: Any) -> Complexity:
    """Count a model's parameters and the multiply-adds of one forward pass in eval mode.

    On the ``meta`` device nothing is computed, so that even large models are counted quickly.

    Args:
        model: Model to count.
        *inputs: Arguments of the model's ``forward``.

    Examples:
        >>> from acmix_mm.backbones import ACmixResNet
        >>> with torch.device('meta'):
        ...     measure_complexity(ACmixResNet(26), torch.empty(1, 3, 224, 224)).params
        8438816
    """
    parts = measure_parts(model, lambda: model(*inputs)).values()
    return Complexity(sum(part.params for part in parts), sum(part.macs for part in parts))


def measure_parts(model: nn.Module, run: Callable[[], Any]) -> dict[str, Complexity]:
    """Count parameters and multiply-adds of each part of a model.

    Args:
        model: Model to count. Its children are its parts.
        run: Callable that runs the model once. The model is in eval mode then.

    Returns:
        dict[str, Complexity]: Counts by the names of the parts. Parameters and work outside of the
        children have the name ``''``. Parameters that several parts share count for the first one.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1, bias=False))
        >>> measure_parts(model, lambda: model(torch.rand(1, 3, 5, 5)))['2']
        Complexity(params=16, macs=400)
    """
    names = [name for name, _ in model.named_children()]
    params = dict.fromkeys(names, 0)
    for name, parameter in model.named_parameters():
        part = name.split('.')[0] if '.' in name else ''
        params[part] = params.get(part, 0) + parameter.numel()
    training = model.training
    torch_operators = FlopCounterMode(display=False, custom_mapping=_UNKNOWN_TO_TORCH)
    our_operators = _OurOperators()
    macs = _MacsByPart(model, lambda: torch_operators.get_total_flops() // 2 + our_operators.macs)
    try:
        with torch.no_grad(), torch_operators, our_operators, macs:
            model.eval()
            run()
    finally:
        model.train(training)
    return {
        name: Complexity(params.get(name, 0), macs.macs.get(name, 0))
        for name in {**params, **macs.macs}
    }


class _MacsByPart:
    """Context manager that assigns multiply-adds to the part of the model that is running.

    It wraps methods instead of registering hooks, because heads do part of their work in
    ``predict`` without ``__call__``, which hooks would not see.

    Args:
        model: Model whose children are the parts. A module at any depth belongs to the part that
            contains it.
        total: Function that returns the number of multiply-adds counted so far.
    """

    def __init__(self, model: nn.Module, total: Callable[[], int]) -> None:
        self.macs: dict[str, int] = {}
        self._model = model
        self._total = total
        self._credited = 0
        self._part = ''
        self._watched: list[tuple[nn.Module, str]] = []

    def __enter__(self) -> None:
        # A layer treats a projection whose `forward` was replaced as one that it does not know.
        layers = [m for m in self._model.modules() if hasattr(m, 'shift_conv')]
        inner = {child for layer in layers for child in layer.children()}
        for name, module in self._model.named_modules():
            if module in inner:
                continue
            for method in ('forward', 'predict'):
                if hasattr(module, method) and method not in vars(module):
                    watched = self._watch(getattr(module, method), name.split('.')[0])
                    setattr(module, method, watched)
                    self._watched.append((module, method))

    def __exit__(self, *_: Any) -> None:
        self._credit()
        for module, method in self._watched:
            delattr(module, method)

    def _watch(self, method: Callable, part: str) -> Callable:
        @wraps(method)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._credit()
            caller, self._part = self._part, part
            result = method(*args, **kwargs)
            self._credit()
            self._part = caller
            return result

        return watched

    def _credit(self) -> None:
        total = self._total()
        if total > self._credited:
            self.macs[self._part] = self.macs.get(self._part, 0) + total - self._credited
            self._credited = total


class _OurOperators(TorchFunctionMode):
    """Mode that counts the multiply-adds of our operators instead of running them."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(
        self, func: Callable, types: Sequence, args: Sequence = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is pointwise_conv:
            # This backend is a matrix product of torch, which torch's counter counts. The fifth
            # argument, the backend, is replaced.
            return func(*args[:4], **kwargs | dict(backend='matmul'))
        formula = _FORMULAS.get(func)
        if formula is None:
            return func(*args, **kwargs)
        macs, shape = formula(*args, **kwargs)
        self.macs += macs
        return _first(args[0]).new_zeros(shape)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, *_: Any, **__: Any
) -> tuple[int, Sequence[int]]:
    """Count one logit and one weighted value per neighbor and channel."""
    return 2 * q.numel() * kernel_size**2, q.shape


def _aggregation(
    weights: Tensor, v: Tensor, kernel_size: int, *_: Any, **__: Any
) -> tuple[int, Sequence[int]]:
    """Count one weighted value per neighbor and channel."""
    return v.numel() * kernel_size**2, v.shape


def _shift_conv(
    maps: Tensor | Sequence[Tensor],
    fc_weight: Tensor,
    fc_bias: Tensor | None,
    kernel: Tensor,
    stride: int = 1,
    *_: Any,
    projection: Projection | None = None,
    **__: Any,
) -> tuple[int, Sequence[int]]:
    """Count the fully connected layer at every pixel of the maps, and the grouped convolution.

    Maps that are not given have to be projected first.
    """
    batch_size, _maps, groups, *size = _first(maps).shape
    pairs, channels, *filter_shape = kernel.shape
    out_shape = (batch_size, channels, *(-(-side // stride) for side in size))
    pixels = batch_size * prod(size)
    macs = pixels * groups * prod(fc_weight.shape) + pairs * prod(out_shape) * prod(filter_shape)
    if projection is not None:
        given = sum(tensor.shape[1] for tensor in ([maps] if isinstance(maps, Tensor) else maps))
        missing = (fc_weight.shape[-1] - given) * groups
        macs += pixels * missing * projection.x.shape[1]
    return macs, out_shape


def _window_attention(
    qkv: Tensor, bias: Tensor, window_size: int, *_: Any, **__: Any
) -> tuple[int, Sequence[int]]:
    """Count one logit and one weighted value per pixel of the window and channel."""
    return 2 * qkv.numel() // 3 * window_size**2, (*qkv.shape[:3], *qkv.shape[4:])


def _first(tensors: Tensor | Sequence[Tensor]) -> Tensor:
    return tensors if isinstance(tensors, Tensor) else tensors[0]


def _attention_on_cpu(
    q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any
) -> int:
    return sdpa_flop_count(q, k, v)


_FORMULAS: dict[Callable, Callable[..., tuple[int, Sequence[int]]]] = {
    neighborhood_attention: _attention,
    neighborhood_aggregation: _aggregation,
    shift_conv: _shift_conv,
    window_attention: _window_attention,
}
# torch 2.13 has formulas for the attention kernels of GPUs only. torch 2.1 has no other kernels.
_KERNEL_ON_CPU = getattr(torch.ops.aten, '_scaled_dot_product_flash_attention_for_cpu', None)
_UNKNOWN_TO_TORCH = {_KERNEL_ON_CPU: _attention_on_cpu} if _KERNEL_ON_CPU else {}
