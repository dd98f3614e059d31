"""The public operators: check the input, choose a backend, call it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import checks, composed, cpu, pointwise, reference, tiled, triton_attention
from .overrides import overridable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """One implementation of an operator.

    Attributes:
        run: The implementation.
        can_run: Tells from the tensors whether ``run`` can take them; with ``raise_error=True`` it
            raises, saying why not.
        installed: Whether it is there at all.
    """

    run: Callable[..., Any]
    can_run: Callable[..., bool]
    installed: bool = True


# Best first: automatic choice takes the first backend that can run.
_NEIGHBORHOOD_ATTENTION = {
    'cpu': Backend(cpu.neighborhood_attention, checks.can_run_cpu, cpu.MISSING is None),
    'tiled': Backend(tiled.neighborhood_attention, checks.can_run_tiled),
    # Below what runs everywhere, so only by name, until someone has measured it on a GPU.
    'triton': Backend(
        triton_attention.neighborhood_attention,
        checks.can_run_triton,
        triton_attention.MISSING is None,
    ),
    'reference': Backend(reference.neighborhood_attention, checks.can_run_reference),
}
_SHIFT_CONV = {
    'cpu': Backend(cpu.shift_conv, checks.can_run_cpu, cpu.MISSING is None),
    'composed': Backend(composed.shift_conv, checks.can_run_composed),
    'reference': Backend(reference.shift_conv, checks.can_run_reference),
}
_POINTWISE_CONV = {
    'cpu': Backend(cpu.pointwise_conv, checks.can_run_pointwise_cpu, cpu.MISSING is None),
    'torch': Backend(pointwise.pointwise_conv, checks.can_run_torch),
}
_OPERATORS = {
    'neighborhood_attention': _NEIGHBORHOOD_ATTENTION,
    'shift_conv': _SHIFT_CONV,
    'pointwise_conv': _POINTWISE_CONV,
}


def available_backends(operator: str) -> tuple[str, ...]:
    """Names of an operator's backends in this installation, best first.

    Args:
        operator: ``'neighborhood_attention'``, ``'shift_conv'`` or ``'pointwise_conv'``.

    Raises:
        KeyError: ``operator`` is none of them.

    Examples:
        >>> available_backends('neighborhood_attention')
        (...'tiled', ...'reference')
    """
    return tuple(name for name, backend in _OPERATORS[operator].items() if backend.installed)


def _choose(operator: str, backend: str | None, *tensors: Tensor) -> Callable[..., Any]:
    backends = _OPERATORS[operator]
    if backend is not None:
        if backend not in backends:
            raise ValueError(
                f'{operator}: no backend {backend!r} in this installation; '
                f'choose one of {list(backends)}, or None for the best that can run'
            )
        backends[backend].can_run(*tensors, raise_error=True)
        return backends[backend].run
    for name, candidate in backends.items():
        if candidate.can_run(*tensors):
            return candidate.run
        if not torch.compiler.is_compiling():
            _log_skip(operator, name, tensors[0].device.type)
    raise RuntimeError(f'{operator}: none of {list(backends)} can take these tensors')


@lru_cache
def _log_skip(operator: str, name: str, device: str) -> None:
    """Once for each, not for each call."""
    logger.info('%s: backend %r cannot run on %s tensors here', operator, name, device)


@overridable
def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel_size: int,
    stride: int = 1,
    dilation: int = 1,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Attention of every query to the ``kernel_size x kernel_size`` window around its pixel.

    ``out[i] = sum_j softmax_j(scale * q[i] . k[j]) v[j]``, j over the window of pixel
    ``stride * i``, with steps of ``dilation``. k and v are reflection-padded
    (:func:`numpy.pad`'s ``reflect``), so every window is full. This is the attention path of
    ResNet-ACmix (Pan et al., CVPR 2022); its relative position enters as ``k - p``.

    Args:
        q: ``(B, N, D, ceil(H / stride), ceil(W / stride))``, N heads of D channels.
        k: ``(B, N, D, H, W)``.
        v: ``(B, N, D, H, W)``.
        kernel_size: Window side K in pixels, odd.
        stride: Pixels between the windows of neighbouring queries.
        dilation: Pixels between neighbouring keys of a window.
        scale: Factor of the logits; ``D ** -0.5`` if None.
        backend: One of ``available_backends('neighborhood_attention')``; None takes the best that
            can run.

    Returns:
        Tensor: The shape of q.

    Raises:
        ValueError: Shapes, ``kernel_size``, ``stride`` or ``dilation`` do not fit, or there is no
            such backend.
        TypeError: Not floating point, or dtypes or devices differ.
        RuntimeError: The backend asked for cannot run on this device or was not built.

    Examples:
        >>> import torch
        >>> q, k, v = torch.randn(3, 2, 4, 8, 9, 5).unbind()
        >>> neighborhood_attention(q, k, v, kernel_size=7).shape
        torch.Size([2, 4, 8, 9, 5])
    """
    checks.check_neighborhood_attention(q, k, v, kernel_size, stride, dilation)
    run = _choose('neighborhood_attention', backend, q, k, v)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    return run(q, k, v, kernel_size, stride, dilation, scale)


@overridable
def shift_conv(
    maps: Tensor | Sequence[Tensor],
    fc_weight: Tensor,
    fc_bias: Tensor | None,
    kernel: Tensor,
    stride: int = 1,
    dilation: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Mix maps by a fully connected layer, shift them by a grouped convolution and sum.

    The convolution path of ACmix (Pan et al., CVPR 2022, Fig. 2c): ``k*k`` mixtures of
    the M maps, one per kernel position, go through a zero-padded ``k x k`` convolution with one
    group per channel of a map. P pairs of (fully connected layer, convolution) are summed.

    Args:
        maps: ``(B, M, G, H, W)``, M maps of G channels; or several tensors, such as q, k and v,
            whose maps are taken one tensor after the other.
        fc_weight: ``(P, k*k, M)``.
        fc_bias: ``(P, k*k)``, added inside the image only, or None.
        kernel: ``(P, C, k*k, k, k)``, C a multiple of G, k odd.
        stride: Of the convolution, in pixels.
        dilation: Of the convolution, in pixels.
        backend: One of ``available_backends('shift_conv')``; None takes the best that can run.

    Returns:
        Tensor: ``(B, C, ceil(H / stride), ceil(W / stride))``; channel c is of group
        ``c // (C / G)``.

    Raises:
        ValueError: Shapes, ``stride`` or ``dilation`` do not fit, or there is no such backend.

    Examples:
        >>> import torch
        >>> maps = torch.randn(2, 12, 16, 9, 5)
        >>> shift_conv(maps, torch.randn(1, 9, 12), None, torch.randn(1, 64, 9, 3, 3)).shape
        torch.Size([2, 64, 9, 5])
    """
    parts = (maps,) if isinstance(maps, Tensor) else tuple(maps)
    checks.check_shift_conv(parts, fc_weight, fc_bias, kernel, stride, dilation)
    run = _choose('shift_conv', backend, *parts, fc_weight, kernel)
    return run(parts, fc_weight, fc_bias, kernel, stride, dilation)


@overridable
def pointwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor, parts: int = 1, backend: str | None = None
) -> tuple[Tensor, ...]:
    """1x1 convolution whose result comes in parts: the projections to queries, keys and values.

    The first stage of ACmix (Pan et al., CVPR 2022, Sec. 4.1).

    Args:
        x: ``(B, C_in, H, W)``.
        weight: ``(C_out, C_in)``.
        bias: ``(C_out,)``.
        parts: Number of results, a divisor of C_out.
        backend: One of ``available_backends('pointwise_conv')``; None takes the best that can run.

    Returns:
        tuple[Tensor, ...]: ``parts`` times ``(B, C_out / parts, H, W)``.

    Raises:
        ValueError: Shapes or ``parts`` do not fit, or there is no such backend.
        RuntimeError: The backend asked for cannot run on these tensors or was not built.

    Examples:
        >>> import torch
        >>> q, k, v = pointwise_conv(
        ...     torch.rand(2, 3, 5, 6), torch.rand(24, 3), torch.rand(24), parts=3)
        >>> q.shape
        torch.Size([2, 8, 5, 6])
    """
    checks.check_pointwise_conv(x, weight, bias, parts)
    return _choose('pointwise_conv', backend, x, weight, bias)(x, weight, bias, parts)
