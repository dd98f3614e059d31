# SPDX-License-Identifier: Apache-2.0
"""The compiled kernels for CPUs, as operators of :mod:`torch.library` with autograd.

The package works without them, only slower; :data:`MISSING` then holds the reason.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ..flops import register_flops
from ..overrides import tensors_of
from ..projection import Projection, complete_maps
from ..torch_compat import register_autograd, register_fake
from ..transforms import NO_TRANSFORMS, transforms_active
from .composed import compose

MISSING: str | None = None
try:
    import_module('acmix_mm.ops._C')  # registers the operators
except ImportError as error:
    MISSING = (
        f'the C++ kernels are not built, or not for this torch ({error}); '
        'run `ACMIX_BUILD_KERNELS=1 pip install --no-build-isolation .` in a checkout: '
        'it builds them or says why it cannot'
    )


def cannot_run(*arguments: Any) -> str | None:
    """Return why the kernels cannot take these arguments, or None if they can."""
    if MISSING is not None:
        return MISSING
    tensors = tensors_of(*arguments)
    if any(tensor.device.type != 'cpu' for tensor in tensors):
        return f'the tensors must be on the CPU, got {tensors[0].device}'
    return NO_TRANSFORMS if transforms_active() else None


def cannot_run_in_one_precision(*arguments: Any) -> str | None:
    """Return why the matrix product and what contains it cannot take these arguments, or None.

    It is compiled for single and double precision; in half precision oneDNN is faster.
    """
    dtypes = {tensor.dtype for tensor in tensors_of(*arguments)}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
        names = ', '.join(sorted(map(str, dtypes)))
        return f'the tensors must all be float32 or all float64, got {names}'
    return cannot_run(*arguments)


def cannot_attend_in_windows(
    qkv: Tensor,
    bias: Tensor,
    window_size: int,
    masks: tuple[Tensor, Tensor] | None,
    scale: float,
    dropout_p: float,
) -> str | None:
    """Return why the attention in windows cannot take these arguments, or None if it can."""
    if dropout_p > 0:
        return 'it has no dropout of attention weights'
    if any(mask.requires_grad for mask in masks or ()):
        return 'it has no gradients of masks'
    return cannot_run_in_one_precision(qkv, bias, *(masks or ()))


def neighborhood_attention(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, stride: int, dilation: int, scale: float
) -> Tensor:
    """See :func:`acmix_mm.ops.neighborhood_attention`."""
    out, _ = torch.ops.acmix_mm.neighborhood_attention_forward(
        q, k, v, kernel_size, stride, dilation, scale
    )
    return out


def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor, chunks: int) -> tuple[Tensor, ...]:
    """See :func:`acmix_mm.ops.pointwise_conv`."""
    return tuple(torch.ops.acmix_mm.pointwise_conv_forward(x, weight, bias, chunks))


def shift_conv(
    maps: Sequence[Tensor],
    fc_weight: Tensor,
    fc_bias: Tensor | None,
    kernel: Tensor,
    stride: int,
    dilation: int,
    projection: Projection | None = None,
) -> Tensor:
    """See :func:`acmix_mm.ops.shift_conv`."""
    weight = compose(fc_weight, kernel)
    if fc_bias is not None:
        # One more map, of ones inside the image and zeros in the padding, carries the bias.
        weight = torch.cat([weight, compose(fc_bias.unsqueeze(-1), kernel)], 1)
    maps = complete_maps(maps, projection, fc_weight.shape[-1])
    weight = weight.to(maps[0].dtype)
    return torch.ops.acmix_mm.shift_conv_forward([*maps], weight, stride, dilation)


def window_attention(
    qkv: Tensor,
    bias: Tensor,
    window_size: int,
    masks: tuple[Tensor, Tensor] | None,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """See :func:`acmix_mm.ops.window_attention`."""
    out, _ = torch.ops.acmix_mm.window_attention_forward(
        qkv, bias, *(masks or (None, None)), window_size, scale
    )
    return out


def acmix_layer(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    position: Tensor,
    fc_weight: Tensor,
    kernel: Tensor,
    alpha: Tensor,
    kernel_size: int,
    stride: int,
    dilation: int,
) -> Tensor:
    """See :func:`acmix_mm.ops.acmix_layer.acmix_layer`."""
    tensors = x, qkv_weight, qkv_bias, position, compose(fc_weight, kernel), alpha
    scale = len(position) ** -0.5
    out, _ = torch.ops.acmix_mm.acmix_layer_forward(*tensors, kernel_size, stride, dilation, scale)
    return out


def _compute_dtype(x: Tensor) -> torch.dtype:
    """Half precision is computed in single precision."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _attention_fake(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, stride: int, dilation: int, scale: float
) -> tuple[Tensor, Tensor]:
    batch_size, heads, _, height, width = q.shape
    lse = q.new_empty(batch_size, heads, height, width, dtype=_compute_dtype(q))
    return q.new_empty(q.shape), lse


def _attention_backward_fake(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    kernel_size: int,
    stride: int,
    dilation: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save_attention(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *ctx.window = inputs
    ctx.save_for_backward(q, k, v, output[1])


def _attention_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    backward = torch.ops.acmix_mm.neighborhood_attention_backward
    return *backward(grad, *ctx.saved_tensors, *ctx.window), None, None, None, None


def _result_size(sides: Sequence[int], stride: int) -> list[int]:
    return [(side + stride - 1) // stride for side in sides]


def _by_line(maps: Sequence[Tensor]) -> bool:
    """Return whether channels are next to each other, and fill whole cache lines.

    The convolution then computes the channels of a line together, and returns maps with their
    channels innermost. ``shift_conv.cpp`` has the same rule.
    """
    line = 64 // _compute_dtype(maps[0]).itemsize
    return maps[0].shape[2] % line == 0 and all(tensor.stride(2) == 1 for tensor in maps)


def _conv_fake(maps: Sequence[Tensor], weight: Tensor, stride: int, dilation: int) -> Tensor:
    batch_size, _, _, *sides = maps[0].shape
    size = _result_size(sides, stride)
    if _by_line(maps):
        return weight.new_empty(batch_size, *size, len(weight)).movedim(-1, 1)
    return weight.new_empty(batch_size, len(weight), *size)


def _conv_backward_fake(
    grad: Tensor, maps: Sequence[Tensor], weight: Tensor, stride: int, dilation: int
) -> tuple[list[Tensor], Tensor]:
    if _by_line(maps):
        shapes = [[tensor.shape[axis] for axis in (0, 3, 4, 1, 2)] for tensor in maps]
        grads = [weight.new_empty(shape).movedim((-2, -1), (1, 2)) for shape in shapes]
    else:
        grads = [tensor.new_empty(tensor.shape) for tensor in maps]
    return grads, weight.new_empty(weight.shape)


def _save_conv(ctx: Any, inputs: tuple, output: Tensor) -> None:
    maps, weight, *ctx.geometry = inputs
    ctx.save_for_backward(weight, *maps)


def _conv_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    weight, *maps = ctx.saved_tensors
    backward = torch.ops.acmix_mm.shift_conv_backward
    return *backward(grad, maps, weight, *ctx.geometry), None, None


def _pointwise_fake(x: Tensor, weight: Tensor, bias: Tensor, chunks: int) -> list[Tensor]:
    batch_size, _, height, width = x.shape
    return [x.new_empty(batch_size, len(weight) // chunks, height, width) for _ in range(chunks)]


def _pointwise_backward_fake(
    grads: Sequence[Tensor], x: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(len(weight))


def _save_pointwise(ctx: Any, inputs: tuple, output: Sequence[Tensor]) -> None:
    x, weight, _, _ = inputs
    ctx.save_for_backward(x, weight)


def _pointwise_backward(ctx: Any, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    backward = torch.ops.acmix_mm.pointwise_conv_backward
    return *backward(grads, *ctx.saved_tensors), None


def _window_fake(
    qkv: Tensor,
    bias: Tensor,
    row_masks: Tensor | None,
    column_masks: Tensor | None,
    window_size: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    batch_size, height, width, _, *heads = qkv.shape
    windows = batch_size * (height // window_size) * (width // window_size)
    lse = qkv.new_empty(windows, heads[0], window_size**2)
    return qkv.new_empty(batch_size, height, width, *heads), lse


def _window_backward_fake(
    grad: Tensor, qkv: Tensor, bias: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), bias.new_empty(bias.shape)


def _save_window(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, window_size, scale = inputs
    ctx.window = window_size, scale
    ctx.save_for_backward(*tensors, output[1])


def _window_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    backward = torch.ops.acmix_mm.window_attention_backward
    return *backward(grad, *ctx.saved_tensors, *ctx.window), None, None, None, None


def _layer_fake(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    position: Tensor,
    conv_weight: Tensor,
    alpha: Tensor,
    kernel_size: int,
    stride: int,
    dilation: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    batch_size, _, *sides = x.shape
    size, heads = _result_size(sides, stride), conv_weight.shape[1] // 3
    return x.new_empty(batch_size, len(conv_weight), *size), x.new_empty(batch_size, heads, *size)


def _layer_backward_fake(
    grad: Tensor,
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    position: Tensor,
    conv_weight: Tensor,
    alpha: Tensor,
    lse: Tensor,
    kernel_size: int,
    stride: int,
    dilation: int,
    scale: float,
) -> tuple[Tensor, ...]:
    batch_size, _, *size = x.shape
    grad_qkv = x.new_empty(batch_size, len(qkv_weight), *size)
    return grad_qkv, *(part.new_empty(part.shape) for part in (position, conv_weight, alpha))


def _save_layer(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, kernel_size, stride, dilation, scale = inputs
    ctx.window = kernel_size, stride, dilation, scale
    ctx.save_for_backward(*tensors, output[1])


def _layer_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: activation checkpointing refuses a second time
    ops, (x, qkv_weight, *_others) = torch.ops.acmix_mm, saved
    grad_qkv, *grads = ops.acmix_layer_backward(grad, *saved, *ctx.window)
    grad_inputs = ops.pointwise_conv_backward([grad_qkv], x, qkv_weight)
    return *grad_inputs, *grads, None, None, None, None


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError(
        "backend 'cpu' has no second derivatives; use acmix_mm.ops.use_backend('reference')"
    )


def _on_one_device(operator: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Let a fake implementation refuse tensors of different devices.

    torch calls it instead of the kernel if one of the tensors is on the meta device, and would
    return its memory, which nobody has written.
    """

    @wraps(fake)
    def checked(*args: Any) -> Any:
        devices = {tensor.device for tensor in tree_flatten(args)[0] if isinstance(tensor, Tensor)}
        if len(devices) > 1:
            names = ', '.join(sorted(map(str, devices)))
            raise RuntimeError(f'{operator}: all tensors must be on one device, got {names}')
        return fake(*args)

    return checked


def _register(name: str, *, fake: Any, backward_fake: Any, save: Any, backward: Any) -> None:
    forward_op, backward_op = f'acmix_mm::{name}_forward', f'acmix_mm::{name}_backward'
    register_fake(forward_op, _on_one_device(forward_op, fake))
    register_fake(backward_op, _on_one_device(backward_op, backward_fake))
    register_autograd(forward_op, backward, setup_context=save)
    register_autograd(backward_op, _no_second_derivative)
    register_flops(name)


if MISSING is None:
    _register(
        'neighborhood_attention',
        fake=_attention_fake,
        backward_fake=_attention_backward_fake,
        save=_save_attention,
        backward=_attention_backward,
    )
    _register(
        'shift_conv',
        fake=_conv_fake,
        backward_fake=_conv_backward_fake,
        save=_save_conv,
        backward=_conv_backward,
    )
    _register(
        'pointwise_conv',
        fake=_pointwise_fake,
        backward_fake=_pointwise_backward_fake,
        save=_save_pointwise,
        backward=_pointwise_backward,
    )
    _register(
        'window_attention',
        fake=_window_fake,
        backward_fake=_window_backward_fake,
        save=_save_window,
        backward=_window_backward,
    )
    _register(
        'acmix_layer',
        fake=_layer_fake,
        backward_fake=_layer_backward_fake,
        save=_save_layer,
        backward=_layer_backward,
    )
