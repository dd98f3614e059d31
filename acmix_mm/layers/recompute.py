# SPDX-License-Identifier: Apache-2.0
"""Activation checkpointing that updates BatchNorm statistics once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..ops.torch_compat import is_compiling


def recompute(block: nn.Module, function: Callable[..., Tensor], *args: Any) -> Tensor:
    """Call a function of a block and compute its activations again in the backward pass.

    The second call does not update the running statistics of BatchNorm, so that training gives the
    same result with and without recomputation.

    Args:
        block: Module whose BatchNorm layers the function uses.
        function: Function to call.
        *args: Arguments of the function.

    Examples:
        >>> import torch
        >>> norm = nn.BatchNorm2d(2)
        >>> x = torch.randn(3, 2, 4, 4, requires_grad=True)
        >>> recompute(norm, norm, x).sum().backward()
        >>> norm.num_batches_tracked.item()
        1
    """
    if is_compiling():
        # torch.compile does not trace contexts of our own, and needs none: AOTAutograd, through
        # which all backends go but 'eager', leaves updates out of what is computed again.
        return checkpoint(function, *args, use_reentrant=False)
    return checkpoint(
        function,
        *args,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _untracked_statistics(block)),
    )


@contextmanager
def _untracked_statistics(block: nn.Module) -> Iterator[None]:
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    # Tracking cannot be switched off: the second call would save other tensors than the first. The
    # counter cannot be removed, because SyncBatchNorm needs it; it is replaced by a copy.
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, count in kept:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum, norm.num_batches_tracked = momentum, count
