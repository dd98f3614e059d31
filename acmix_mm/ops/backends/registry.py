# SPDX-License-Identifier: Apache-2.0
"""Which backends each operator has, and which of them runs a call."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from ..overrides import tensors_of
from ..torch_compat import is_compiling
from . import composed, cpu, dense, matmul, portable, reference, sdpa, shifted, tiled, triton

logger = logging.getLogger(__name__)


def _no_reason(*_: Any) -> str | None:
    return None


@dataclass(frozen=True)
class Backend:
    """One implementation of an operator.

    Attributes:
        run: The implementation. Its arguments were checked.
        cannot_run: Takes the arguments of ``run``. Returns the reason why ``run`` cannot take them,
            or None if it can.
        missing: Returns the reason why the backend is not part of this installation, or None if it
            is.
        by_name_only: Takes the arguments of ``run``. Returns the reason why automatic choice leaves
            the backend out although it can run, or None if it does not.
    """

    run: Callable[..., Any]
    cannot_run: Callable[..., str | None]
    missing: Callable[[], str | None] = _no_reason
    by_name_only: Callable[..., str | None] = _no_reason


def _cpu_missing() -> str | None:
    return cpu.MISSING


# Best first: automatic choice takes the first backend that can run and is not for use by name only.
OPERATORS: dict[str, dict[str, Backend]] = {
    'neighborhood_attention': {
        'cpu': Backend(cpu.neighborhood_attention, cpu.cannot_run, _cpu_missing),
        'triton': Backend(
            triton.neighborhood_attention, triton.cannot_run, triton.missing, triton.by_name_only
        ),
        'tiled': Backend(tiled.neighborhood_attention, tiled.cannot_run),
        'portable': Backend(
            portable.neighborhood_attention,
            portable.cannot_run,
            by_name_only=portable.by_name_only,
        ),
        'reference': Backend(reference.neighborhood_attention, reference.cannot_run),
    },
    'neighborhood_aggregation': {
        'shifted': Backend(shifted.neighborhood_aggregation, shifted.cannot_run),
        'portable': Backend(
            portable.neighborhood_aggregation,
            portable.cannot_run,
            by_name_only=portable.by_name_only,
        ),
        'reference': Backend(reference.neighborhood_aggregation, reference.cannot_run),
    },
    'shift_conv': {
        'cpu': Backend(cpu.shift_conv, cpu.cannot_run, _cpu_missing),
        'dense': Backend(dense.shift_conv, dense.cannot_run, by_name_only=dense.by_name_only),
        'composed': Backend(composed.shift_conv, composed.cannot_run),
        'reference': Backend(reference.shift_conv, reference.cannot_run),
    },
    'pointwise_conv': {
        'cpu': Backend(cpu.pointwise_conv, cpu.cannot_run_in_one_precision, _cpu_missing),
        'matmul': Backend(matmul.pointwise_conv, matmul.cannot_run),
        'reference': Backend(reference.pointwise_conv, reference.cannot_run),
    },
    'window_attention': {
        'cpu': Backend(cpu.window_attention, cpu.cannot_attend_in_windows, _cpu_missing),
        'sdpa': Backend(sdpa.window_attention, sdpa.cannot_run),
        'reference': Backend(reference.window_attention, reference.cannot_run),
    },
}

# For graphs that other programs run, and while torch records one for ONNX: torch's own operators,
# few of them, and right for maps of any size if sizes stay open.
PORTABLE = {
    'neighborhood_attention': 'portable',
    'neighborhood_aggregation': 'portable',
    'shift_conv': 'composed',
    'pointwise_conv': 'reference',
    'window_attention': 'sdpa',
}

# The backends that `use_backend` has set, by operator. A plain dict: torch.compile follows it.
_selected: dict[str, str] = {}


def available_backends(operator: str) -> tuple[str, ...]:
    """Return the names of an operator's backends in this installation, best first.

    Args:
        operator: ``'neighborhood_attention'``, ``'neighborhood_aggregation'``, ``'shift_conv'``,
            ``'pointwise_conv'`` or ``'window_attention'``.

    Raises:
        ValueError: There is no such operator.

    Examples:
        >>> available_backends('neighborhood_attention')
        (...'tiled', ...'reference')
    """
    backends = _backends(operator)
    return tuple(name for name, backend in backends.items() if backend.missing() is None)


@contextmanager
def use_backend(backend: str, operator: str | None = None) -> Iterator[None]:
    """Use one backend for every call inside the context that does not name its own.

    It applies to the whole process, to layers and backbones as well as to direct calls, and while a
    model is compiled or exported. Contexts can be nested; the innermost one that concerns an
    operator counts.

    Args:
        backend: Name of the backend. ``'reference'`` is the published definition of each operator.
        operator: Name of the operator; None (default) means all operators that have a backend of
            this name, and the other ones go on choosing automatically.

    Raises:
        ValueError: There is no such operator, or it has no such backend.

    Examples:
        >>> import torch
        >>> from acmix_mm.layers import ACmix
        >>> layer, x = ACmix(8, 8).double(), torch.rand(1, 8, 9, 9).double()
        >>> with use_backend('reference'):
        ...     expected = layer(x)
        >>> torch.allclose(layer(x), expected)
        True
    """
    operators = [operator] if operator else [op for op in OPERATORS if backend in OPERATORS[op]]
    for name in operators:
        _check_name(name, backend)
    if not operators:
        names = dict.fromkeys(name for backends in OPERATORS.values() for name in backends)
        raise ValueError(f'no operator has a backend {backend!r}; choose one of {[*names]}')
    outer = dict(_selected)
    _selected.update(dict.fromkeys(operators, backend))
    try:
        yield
    finally:
        _selected.clear()
        _selected.update(outer)


def is_chosen_automatically(operator: str) -> bool:
    """Return whether calls of an operator that name no backend get the best one."""
    return operator not in _selected and not torch.onnx.is_in_onnx_export()


def run(operator: str, backend: str | None, *arguments: Any) -> Any:
    """Choose a backend of an operator and return its result.

    Args:
        operator: Name of the operator.
        backend: Name of the backend that the caller asks for. None means the one set by
            :func:`use_backend`, or else the best one that can take the arguments.
        *arguments: The arguments of the backend, the first one a tensor or several.

    Raises:
        ValueError: The operator has no such backend.
        RuntimeError: The backend that was asked for cannot take the arguments; the message says
            why.
    """
    return _choose(operator, backend, arguments).run(*arguments)


def _choose(operator: str, backend: str | None, arguments: Sequence[Any]) -> Backend:
    backends = _backends(operator)
    name = backend if backend is not None else _selected.get(operator)
    if name is None and torch.onnx.is_in_onnx_export():
        name = PORTABLE[operator]
    if name is not None:
        _check_name(operator, name)
        reason = backends[name].cannot_run(*arguments)
        if reason is not None:
            raise RuntimeError(f'{operator}: backend {name!r} cannot run: {reason}')
        return backends[name]
    for name, candidate in backends.items():
        reason = candidate.cannot_run(*arguments) or candidate.by_name_only(*arguments)
        if reason is None:
            return candidate
        if not is_compiling():
            _log_skipped(operator, name, tensors_of(*arguments)[0].device.type, reason)
    raise RuntimeError(f'{operator}: none of {list(backends)} can take these arguments')


def _backends(operator: str) -> dict[str, Backend]:
    if operator not in OPERATORS:
        raise ValueError(f'no operator {operator!r}; choose one of {[*OPERATORS]}')
    return OPERATORS[operator]


def _check_name(operator: str, backend: str) -> None:
    backends = _backends(operator)
    if backend not in backends:
        raise ValueError(f'{operator}: no backend {backend!r}; choose one of {list(backends)}')


@lru_cache
def _log_skipped(operator: str, name: str, device: str, reason: str) -> None:
    """Log once per reason, not in each call, that automatic choice skipped a backend."""
    if name == 'cpu' and device == 'cpu' and cpu.MISSING is not None:
        _warn_of_missing_kernels(cpu.MISSING)
    logger.info('%s: backend %r skipped: %s', operator, name, reason)


@lru_cache
def _warn_of_missing_kernels(reason: str) -> None:
    logger.warning('acmix-mm runs without its compiled CPU kernels, which is slower: %s', reason)
