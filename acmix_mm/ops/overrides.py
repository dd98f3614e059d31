# SPDX-License-Identifier: Apache-2.0
"""Lets tools see an operator as one call, whatever its backend is written in."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .torch_compat import uncompiled_before_2_4

P = ParamSpec('P')
R = TypeVar('R')


def overridable(operator: Callable[P, R]) -> Callable[P, R]:
    """Decorator by which an operator takes part in torch's ``__torch_function__`` protocol.

    As with ``torch.nn.functional``, a :class:`torch.overrides.TorchFunctionMode` or a tensor
    subclass gets the call before anything is computed: FLOP counters, tracers and the like.

    Args:
        operator: Takes tensors, or tuples and lists of them, first, by position or name.

    Examples:
        >>> import torch
        >>> from torch.overrides import TorchFunctionMode
        >>> @overridable
        ... def double(x):
        ...     return x * 2
        >>> class Log(TorchFunctionMode):
        ...     def __torch_function__(self, func, types, args=(), kwargs=None):
        ...         print(func.__name__)
        ...         return func(*args, **kwargs or {})
        >>> x = torch.ones(1)
        >>> with Log():
        ...     y = double(x)
        double
    """

    @uncompiled_before_2_4
    @wraps(operator)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = tensors_of(*args, *kwargs.values())
        if has_torch_function(tensors):
            return handle_torch_function(call, tensors, *args, **kwargs)
        return operator(*args, **kwargs)

    return call


def tensors_of(*arguments: Any) -> list[Tensor]:
    """Return the tensors among the arguments of an operator, and in tuples and lists of them.

    What only takes part in their protocol counts as one, such as a proxy of :mod:`torch.fx`.
    """
    tensors: list[Tensor] = []
    for argument in arguments:
        members = argument if isinstance(argument, (tuple, list)) else (argument,)
        tensors.extend(m for m in members if hasattr(type(m), '__torch_function__'))
    return tensors
