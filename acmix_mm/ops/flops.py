# SPDX-License-Identifier: Apache-2.0
"""FLOPs of the compiled operators, for :class:`torch.utils.flop_counter.FlopCounterMode`.

As torch's own formulas do, these count 2 for each multiply-add of what an operator computes, and
nothing for biases. They take the shapes of the tensors. :mod:`acmix_mm.complexity` counts the
definitions of the operators instead, whatever computes them.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch

from .torch_compat import register_flop_formula

Shape = Sequence[int]


def register_flops(operator: str, prefix: str = '') -> None:
    """Tell torch the FLOPs of a compiled operator, forward and backward.

    Args:
        operator: Name of the operator.
        prefix: What the names ``<operator>_forward`` and ``<operator>_backward`` in
            ``torch.ops.acmix_mm`` start with. Default: ``''``.
    """
    for direction, formula in zip(('forward', 'backward'), _FORMULAS[operator], strict=True):
        compiled = getattr(torch.ops.acmix_mm, f'{prefix}{operator}_{direction}')
        register_flop_formula(compiled, formula)


def _attention(q: Shape, k: Shape, v: Shape, kernel_size: int, *_: Any, **__: Any) -> int:
    """Two multiply-adds for each channel and neighbor of a query: its logit and its value."""
    return 2 * 2 * prod(q) * kernel_size**2


def _attention_backward(grad: Shape, q: Shape, k: Shape, v: Shape, *others: Any, **__: Any) -> int:
    """Five: the logit again, and the gradients of weight, query, key and value."""
    kernel_size = next(other for other in others if isinstance(other, int))  # first after tensors
    return 2 * 5 * prod(q) * kernel_size**2


def _shift_conv(maps: Sequence[Shape], weight: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    """One for each weight and output pixel of the composed convolution."""
    inputs = sum(shape[1] for shape in maps)  # without the map of ones, which carries the bias
    return 2 * prod(out_shape) * inputs * prod(weight[2:])


def _shift_conv_backward(
    grad: Shape, maps: Sequence[Shape], weight: Shape, *_: Any, **__: Any
) -> int:
    """As many for the gradient of the maps, and for that of the weights."""
    return 2 * _shift_conv(maps, weight, out_shape=grad)


def _pointwise_conv(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    """One for each weight and pixel."""
    batch_size, _channels, *size = x
    return 2 * batch_size * prod(size) * prod(weight)


def _pointwise_conv_backward(
    grads: Sequence[Shape], x: Shape, weight: Shape, *_: Any, **__: Any
) -> int:
    """As many for the gradient of the input, and for that of the weights."""
    return 2 * _pointwise_conv(x, weight)


def _window_attention(
    qkv: Shape, bias: Shape, row_masks: Any, column_masks: Any, window_size: int, *_: Any, **__: Any
) -> int:
    """As neighborhood attention: a query sees as many pixels as a window has."""
    q = [prod(qkv) // 3]
    return _attention(q, q, q, window_size)


def _window_attention_backward(grad: Shape, *others: Any, **__: Any) -> int:
    window_size = next(other for other in others if isinstance(other, int))  # first after tensors
    return _attention_backward(grad, grad, grad, grad, window_size)


def _acmix_layer(
    x: Shape, weight: Shape, bias: Shape, position: Shape, conv: Shape, alpha: Shape,
    kernel_size: int, *_: Any, out_shape: Sequence[Shape], **__: Any,
) -> int:  # fmt: skip
    """The sum of the three operators."""
    q = out_shape[0]
    return (
        _pointwise_conv(x, weight)
        + _attention(q, q, q, kernel_size)
        + _shift_conv([[x[0], conv[1]]], conv, out_shape=q)
    )


def _acmix_layer_backward(
    grad: Shape, x: Shape, weight: Shape, bias: Shape, position: Shape, conv: Shape, alpha: Shape,
    lse: Shape, kernel_size: int, *_: Any, **__: Any,
) -> int:  # fmt: skip
    """Queries, keys and values again, and their gradients from both paths."""
    return (
        _pointwise_conv(x, weight)
        + _attention_backward(grad, grad, grad, grad, kernel_size)
        + _shift_conv_backward(grad, [[x[0], conv[1]]], conv)
    )


def _dense_acmix_layer(
    x: Shape, weight: Shape, bias: Shape, fc: Shape, kernel: Shape, beta: Shape, position: Shape,
    position_bias: Shape, alpha: Shape, kernel_size: int, *_: Any, out_shape: Any, **__: Any,
) -> int:  # fmt: skip
    """The projection, the attention, and a convolution of the input."""
    out = out_shape[0]
    return (
        _pointwise_conv(x, weight)
        + _attention(out, out, out, kernel_size)
        + _shift_conv([x], [out[1], x[1], *kernel[2:]], out_shape=out)
    )


def _dense_acmix_layer_backward(
    grad: Shape, x: Shape, weight: Shape, bias: Shape, fc: Shape, kernel: Shape, *others: Any,
    **_: Any,
) -> int:  # fmt: skip
    """The gradients of the same."""
    return (
        2 * _pointwise_conv(x, weight)
        + _attention_backward(grad, grad, grad, grad, *others)
        + 2 * _shift_conv([x], [grad[1], x[1], *kernel[2:]], out_shape=grad)
    )


_FORMULAS: dict[str, tuple[Callable[..., int], Callable[..., int]]] = {
    'neighborhood_attention': (_attention, _attention_backward),
    'shift_conv': (_shift_conv, _shift_conv_backward),
    'pointwise_conv': (_pointwise_conv, _pointwise_conv_backward),
    'window_attention': (_window_attention, _window_attention_backward),
    'acmix_layer': (_acmix_layer, _acmix_layer_backward),
    'dense_acmix_layer': (_dense_acmix_layer, _dense_acmix_layer_backward),
}
