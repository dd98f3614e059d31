# SPDX-License-Identifier: Apache-2.0
"""Mixed precision: what the operators do under :class:`torch.autocast`."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .overrides import tensors_of
from .torch_compat import autocast_dtype

P = ParamSpec('P')
R = TypeVar('R')


def autocast_to_lower_precision(operator: Callable[P, R]) -> Callable[P, R]:
    """Decorator by which an operator follows autocast as convolutions and attention of torch do.

    Where autocast is enabled for the device of the tensors, floating-point tensors are cast to its
    dtype, except those in double precision, and the operator runs without autocast. Its result has
    the dtype of autocast, whatever the backend.

    Args:
        operator: Takes tensors, all on one device.

    Examples:
        >>> @autocast_to_lower_precision
        ... def add(x, y):
        ...     return x + y
        >>> with torch.autocast('cpu', torch.bfloat16):
        ...     add(torch.ones(1), torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.bfloat16
    """

    @wraps(operator)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = tensors_of(*args, *kwargs.values())
        device = tensors[0].device.type if tensors else 'cpu'
        dtype = autocast_dtype(device)
        if dtype is None:
            return operator(*args, **kwargs)

        def cast(tensor: Tensor) -> Tensor:
            eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
            return tensor.to(dtype) if eligible else tensor

        args, kwargs = tree_map_only(Tensor, cast, (args, kwargs))
        with torch.autocast(device, enabled=False):
            return operator(*args, **kwargs)

    return call
