# SPDX-License-Identifier: Apache-2.0
"""Lets tools see an operator as one call, whatever its backend is written in."""

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

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

    @wraps(operator)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = [arg for arg in _flat((*args, *kwargs.values())) if isinstance(arg, Tensor)]
        if has_torch_function(tensors):
            return handle_torch_function(call, tensors, *args, **kwargs)
        return operator(*args, **kwargs)

    return call


def _flat(arguments: Iterable[Any]) -> Iterator[Any]:
    for argument in arguments:
        if isinstance(argument, tuple | list):
            yield from argument
        else:
            yield argument
