"""Tensors that depend on a size alone, made once."""

from collections.abc import Callable, Hashable
from functools import lru_cache, wraps

import torch
from torch import Tensor


def cached_per_size(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator for a function that makes a small tensor from sizes, a dtype and a device.

    The tensor is shared by all who ask with the same arguments: they must not write to it. The 64
    asked for last are kept.

    Args:
        make: Takes hashable positional arguments.

    Examples:
        >>> ones = cached_per_size(torch.ones)
        >>> ones(3) is ones(3)
        True
    """

    @lru_cache(maxsize=64)
    def cached(*arguments: Hashable) -> Tensor:
        # A tensor made under inference mode could never again take part in training.
        with torch.inference_mode(False):
            return make(*arguments)

    @wraps(make)
    def get(*arguments: Hashable) -> Tensor:
        # While compiling, memory is the compiler's: a cache would hold its symbolic tensors.
        return make(*arguments) if torch.compiler.is_compiling() else cached(*arguments)

    return get
