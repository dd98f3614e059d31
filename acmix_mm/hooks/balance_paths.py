# SPDX-License-Identifier: Apache-2.0
"""Let both paths of each ACmix layer start equally loud."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, TypeGuard

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ..layers import PathMix
from .path_weights import PathShares


def training_forward(model: Any, data_batch: Any) -> Callable[[], Any]:
    """Return a callable that runs a model of mmengine on a batch as its training does.

    Args:
        model: Model, not wrapped for distributed training.
        data_batch: Batch of the data loader. It is copied: a preprocessor may change samples.
    """
    data = model.data_preprocessor(deepcopy(data_batch), training=True)
    return lambda: model._run_forward(data, mode='loss')


def balance_paths(model: nn.Module, run: Callable[[], Any]) -> None:
    """Set alpha and beta of a new network so that both paths of each layer are equally loud.

    Loud means the root mean square of what a path adds to the sum. At alpha = beta = 0.5, that of
    the convolution is the larger one, by a factor that depends on the width, the random weights and
    the images: no constant balances all layers. So it is measured. Then
    ``alpha : beta = rms(convolution) : rms(attention)`` and ``alpha + beta = 1``.

    Nothing else changes: neither running statistics nor the state of random generators of CPU and
    GPU. In a distributed job, every process must call this function; they take their common mean.

    Args:
        model: Network with ACmix layers, whose alpha is learned. Weights that are not learned,
            such as those of frozen stages, remain.
        run: Callable that runs the model once on a batch, in the mode in which it is trained.

    Raises:
        ValueError: No layer that ran has a learned alpha, or a path of one is silent.

    Examples:
        >>> from acmix_mm.layers import ACmix
        >>> layer, x = ACmix(8, 8), torch.rand(2, 8, 9, 9)
        >>> balance_paths(layer, lambda: layer(x))
        >>> shares = PathShares(layer)
        >>> with shares.measuring():
        ...     y = layer(x)
        >>> round(shares.read()[''].convolution_share, 2)
        0.5
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    device = next(model.parameters()).device
    # By default, every process of a job would take memory of all GPUs of the machine.
    gpus = [device] if device.type == 'cuda' else []
    with torch.no_grad(), torch.random.fork_rng(gpus):
        # The first pass also changes what deeper layers get. That matters where no norm follows.
        for _ in range(2):
            _balance_once(model, run)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def _balance_once(model: nn.Module, run: Callable[[], Any]) -> None:
    mixes = {
        name.rpartition('.')[0]: module
        for name, module in model.named_modules()
        if isinstance(module, PathMix) and _is_learned(module.alpha)
    }
    shares = PathShares(model)
    with shares.measuring():
        run()
    measured = {name: share for name, share in shares.read().items() if name in mixes}
    if not measured:
        raise ValueError('no ACmix layer that ran has learned path weights, which can be balanced')
    loudness = []
    for name, share in measured.items():
        # Without the weights, and both divided by their weighted sum.
        attention = (1 - share.convolution_share) / abs(share.alpha) if share.alpha else 0.0
        convolution = share.convolution_share / abs(share.beta) if share.beta else 0.0
        if not (attention > 0 and convolution > 0):
            raise ValueError(f'the paths of {name or "the layer"} cannot be balanced: {share}')
        loudness.append(convolution / (attention + convolution))
    alphas = torch.tensor(loudness, device=next(model.parameters()).device)
    all_reduce(alphas, 'mean')
    for name, alpha in zip(measured, alphas, strict=True):
        for weight, value in ((mixes[name].alpha, alpha), (mixes[name].beta, 1 - alpha)):
            if _is_learned(weight):
                weight.fill_(value)


def _is_learned(weight: object) -> TypeGuard[nn.Parameter]:
    return isinstance(weight, nn.Parameter) and weight.requires_grad


@HOOKS.register_module()
class BalancePathsHook(Hook):
    """Call :func:`balance_paths` on the first batch of a training, before it is learned from.

    A training that is resumed is left as it is. One that starts from the weights of an ACmix
    network loses their alpha and beta.

    Examples:
        On the command line: ``--cfg-options default_hooks.balance.type=BalancePathsHook``.
    """

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Balance the paths before the first iteration."""
        if runner.iter > 0:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        try:
            balance_paths(model, training_forward(model, data_batch))
        except ValueError as error:
            raise ValueError(f'BalancePathsHook: {error}') from error
