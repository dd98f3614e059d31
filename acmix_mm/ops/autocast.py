# SPDX-License-Identifier: Apache-2.0
"""Mixed precision: what the operators do under :class:`torch.autocast`."""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .overrides import tensors_of
from .projection import Projection
from .torch_compat import autocast_dtype

P = ParamSpec('P')
R = TypeVar('R')


def autocast_to_lower_precision(
    *in_single_precision: str,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator by which an operator follows autocast as convolutions and attention of torch do.

    Where autocast is enabled for the device of the tensors, floating-point tensors are cast to its
    dtype, except those in double precision, and the operator runs without autocast. Its result has
    the dtype of autocast, whatever the backend.

    Args:
        *in_single_precision: Names of arguments whose tensors are cast to float32 instead. So are
            the weights of a :class:`Projection`, whatever the name.

    Examples:
        >>> @autocast_to_lower_precision()
        ... def add(x, y):
        ...     return x + y
        >>> with torch.autocast('cpu', torch.bfloat16):
        ...     add(torch.ones(1), torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.bfloat16
    """

    def decorate(operator: Callable[P, R]) -> Callable[P, R]:
        names = tuple(signature(operator).parameters)

        @wraps(operator)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            tensors = tensors_of(*args, *kwargs.values())
            device = tensors[0].device.type if tensors else 'cpu'
            dtype = autocast_dtype(device)
            if dtype is None:
                return operator(*args, **kwargs)
            named = {**dict(zip(names, args, strict=False)), **kwargs}
            cast = {
                name: _cast_projection(value, dtype)
                if isinstance(value, Projection)
                else _cast(value, torch.float32 if name in in_single_precision else dtype)
                for name, value in named.items()
            }
            with torch.autocast(device, enabled=False):
                return operator(**cast)  # type: ignore[call-arg, arg-type]

        return call

    return decorate


def _cast(argument: Any, dtype: torch.dtype) -> Any:
    """Cast the tensors of an argument, but not those in double precision."""

    def cast(tensor: Tensor) -> Tensor:
        eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype) if eligible else tensor

    return tree_map_only(Tensor, cast, argument)


def _cast_projection(projection: Projection, dtype: torch.dtype) -> Projection:
    x, *weights = projection
    return Projection(_cast(x, dtype), *(_cast(weight, torch.float32) for weight in weights))
