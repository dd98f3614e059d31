"""What the backbones share: checks of their arguments, freezing, recomputation."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def check_stages(
    backbone: str,
    num_stages: int,
    out_indices: Sequence[int],
    frozen_stages: int,
    **per_stage: Sequence[Any],
) -> None:
    """Raise unless arguments that speak of stages fit together.

    Args:
        backbone: Its name, for messages.
        num_stages: How many stages there are.
        out_indices: Stages whose outputs are returned.
        frozen_stages: -1 for none, else 0 to ``num_stages``.
        **per_stage: Arguments with one value a stage.

    Raises:
        ValueError: One of them does not fit; the message names it.

    Examples:
        >>> check_stages('ACmixPVT', 4, (0, 3), -1, strides=(4, 2, 2, 2))
    """
    for name, values in per_stage.items():
        if len(values) != num_stages:
            raise ValueError(
                f'{backbone}: {name} must have {num_stages} values, one a stage, got {values}'
            )
    if not out_indices or not all(0 <= index < num_stages for index in out_indices):
        raise ValueError(
            f'{backbone}: out_indices must be stages from 0 to {num_stages - 1}, got {out_indices}'
        )
    if not -1 <= frozen_stages <= num_stages:
        raise ValueError(
            f'{backbone}: frozen_stages must be -1 (none) or 0 to {num_stages}, got {frozen_stages}'
        )


def freeze(modules: Iterable[nn.Module]) -> None:
    """Put modules in eval mode and stop their gradients.

    Examples:
        >>> layer = nn.Linear(2, 2)
        >>> freeze([layer])
        >>> layer.training, layer.weight.requires_grad
        (False, False)
    """
    for module in modules:
        module.eval().requires_grad_(False)


def eval_batch_norms(network: nn.Module) -> None:
    """Put every BatchNorm in eval mode, so that training leaves its statistics alone.

    Examples:
        >>> network = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout())
        >>> eval_batch_norms(network)
        >>> [module.training for module in network]
        [False, True]
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def recompute(block: nn.Module, function: Callable[..., Tensor], *args: Any) -> Tensor:
    """Call a block's function and keep nothing for the backward pass, which calls it again.

    The second call leaves the running statistics of BatchNorm alone: training is the same with and
    without.

    Args:
        block: Whose function it is.
        function: From ``args`` to a tensor.
        *args: Of the function.

    Examples:
        >>> import torch
        >>> norm = nn.BatchNorm2d(2)
        >>> x = torch.randn(3, 2, 4, 4, requires_grad=True)
        >>> recompute(norm, norm, x).sum().backward()
        >>> norm.num_batches_tracked.item()
        1
    """
    return checkpoint(
        function,
        *args,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _untracked_statistics(block)),
    )


@contextmanager
def _untracked_statistics(block: nn.Module) -> Iterator[None]:
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    # Tracking cannot be switched off: the second call would keep other tensors than the first. Nor
    # can the count be taken away, which SyncBatchNorm insists on: it gets another one.
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, count in kept:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum, norm.num_batches_tracked = momentum, count
