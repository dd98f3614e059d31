# SPDX-License-Identifier: Apache-2.0
"""A cache of tensors that depend on a size alone."""

from collections.abc import Callable, Hashable
from functools import lru_cache, wraps

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .torch_compat import is_compiling
from .transforms import transforms_active


def cached_per_size(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator for a function that makes a small tensor from sizes, a dtype and a device.

    The tensor is shared by all callers with the same arguments: they must not write to it. The 64
    tensors used last are kept.

    Args:
        make: Function of hashable positional arguments.

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
        # A compiler, a transform of torch.func, or a mode such as FakeTensorMode makes tensors of
        # its own that must not be kept for later calls, and cannot use those of earlier calls.
        traced = is_compiling() or _get_current_dispatch_mode() is not None or transforms_active()
        return make(*arguments) if traced else cached(*arguments)

    return get
