"""The compiled kernels for CPUs, as operators of :mod:`torch.library` with autograd.

The package works without them; :data:`MISSING` then says why they are not there.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

MISSING: str | None = None
try:
    import_module('._C', __package__)  # registers the operators
except ImportError as error:
    MISSING = (
        f'the C++ kernels are not built, or not for this torch ({error}); '
        'install acmix-mm from source with `pip install --no-build-isolation .`'
    )


def neighborhood_attention(q: Tensor, k: Tensor, v: Tensor, *window: Any) -> Tensor:
    """See :func:`acmix_mm.ops.neighborhood_attention`."""
    return torch.ops.acmix_mm.neighborhood_attention_forward(q, k, v, *window)[0]


def _attention_fake(q: Tensor, k: Tensor, v: Tensor, *window: Any) -> tuple[Tensor, Tensor]:
    batch_size, heads, _, height, width = q.shape
    lse = q.new_empty(batch_size, heads, height, width, dtype=_compute_dtype(q))
    return q.new_empty(q.shape), lse


def _attention_backward_fake(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _compute_dtype(x: Tensor) -> torch.dtype:
    """Half precision is computed in single precision."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _save_attention(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *ctx.window = inputs
    ctx.save_for_backward(q, k, v, *output)


def _attention_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    backward = torch.ops.acmix_mm.neighborhood_attention_backward
    return *backward(grad, *ctx.saved_tensors, *ctx.window), None, None, None, None


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError(
        "backend 'cpu' of neighborhood_attention has no second derivatives, backend='reference' has"
    )


if MISSING is None:
    torch.library.register_fake('acmix_mm::neighborhood_attention_forward', _attention_fake)
    torch.library.register_fake(
        'acmix_mm::neighborhood_attention_backward', _attention_backward_fake
    )
    torch.library.register_autograd(
        'acmix_mm::neighborhood_attention_forward',
        _attention_backward,
        setup_context=_save_attention,
    )
    torch.library.register_autograd(
        'acmix_mm::neighborhood_attention_backward', _no_second_derivative
    )
