# SPDX-License-Identifier: Apache-2.0
"""What each ACmix layer makes of its two paths, logged while it is trained."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ..layers import PathMix


@dataclass(frozen=True)
class PathShare:
    """How the paths of a layer are weighed.

    Attributes:
        alpha: Weight of the attention path.
        beta: Weight of the convolution path.
        convolution_share: Share of the convolution path in what is summed: its root mean square,
            times beta, over the sum of that of both paths, times their weights. 1 where the layer
            has no attention path, and 0 where it has no convolution path.
    """

    alpha: float
    beta: float
    convolution_share: float


class PathShares:
    """The shares of the paths of all ACmix layers of a model in one forward pass.

    Equal weights are not equal shares: attention averages the values of a window, so that its
    output is the smaller one at first.

    Args:
        model: Model with ACmix layers. The names of its layers are those in the model, without the
            name of their :class:`acmix_mm.layers.PathMix`.

    Attributes:
        layers (tuple[str, ...]): Names of the layers.

    Examples:
        >>> from acmix_mm.layers import ACmix
        >>> layers = nn.Sequential(ACmix(8, 8), ACmix(8, 8, path_weights=(0, 1)))
        >>> shares = PathShares(layers)
        >>> with shares.measuring():
        ...     y = layers(torch.rand(1, 8, 9, 9))
        >>> shares.read()['1']
        PathShare(alpha=0.0, beta=1.0, convolution_share=1.0)
    """

    def __init__(self, model: nn.Module) -> None:
        self._mixes = {
            name.rpartition('.')[0]: module
            for name, module in model.named_modules()
            if isinstance(module, PathMix)
        }
        self.layers = tuple(self._mixes)
        self._measured: dict[str, Tensor] = {}

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Measure the forward passes inside the context; the last one counts."""
        with ExitStack() as stack:
            for name, mix in self._mixes.items():
                # No `with` for handles: it would remove a hook twice.
                handle = mix.register_forward_pre_hook(self._observer(name))
                stack.callback(handle.remove)
            yield

    def read(self) -> dict[str, PathShare]:
        """Return what was measured since the last call, by the names of the layers."""
        measured, self._measured = self._measured, {}
        if not measured:
            return {}
        values = torch.stack([*measured.values()]).tolist()  # one transfer from the device
        return {
            name: PathShare(alpha, beta, _share(attention, convolution))
            for name, (alpha, beta, attention, convolution) in zip(measured, values, strict=True)
        }

    def _observer(self, name: str) -> Any:
        def observe(mix: PathMix, paths: tuple[Tensor | None, Tensor | None]) -> None:
            with torch.no_grad():
                convolution, attention = paths
                some = next(path for path in paths if path is not None)
                weights = [mix.alpha, mix.convolution_weight()]
                alpha, beta = (
                    torch.as_tensor(weight, dtype=torch.float32, device=some.device).reshape(())
                    for weight in weights
                )
                # The convolution has been multiplied by beta already.
                loudness = [alpha.abs() * _rms(attention, some), _rms(convolution, some)]
                self._measured[name] = torch.stack([alpha, beta, *loudness])

        return observe


def _rms(path: Tensor | None, like: Tensor) -> Tensor:
    if path is None:
        return torch.zeros((), device=like.device)
    return path.float().square().mean().sqrt()


def _share(attention: float, convolution: float) -> float:
    total = attention + convolution
    return convolution / total if total > 0 else float('nan')


@HOOKS.register_module()
class PathWeightsHook(Hook):
    """Log alpha, beta and the share of the convolution path of each ACmix layer.

    They go to all backends of the runner's visualizer, such as ``LocalVisBackend``, TensorBoard,
    WandB and MLflow, as ``paths/{layer}/alpha``, ``.../beta`` and ``.../convolution_share`` (see
    :class:`PathShare`). ``tools/analysis/plot_paths.py`` draws them. In training on several
    processes, they are those of the first one and its images.

    Args:
        interval: Number of iterations between two measurements. The first iteration is measured,
            too. Default: 50.

    Raises:
        ValueError: The model that is trained has no ACmix layers.

    Examples:
        In a config: ``custom_hooks = [dict(type='PathWeightsHook', interval=100)]``.
    """

    def __init__(self, interval: int = 50) -> None:
        if interval < 1:
            raise ValueError(f'PathWeightsHook: interval must be at least 1, got {interval}')
        self.interval = interval
        self._shares: PathShares | None = None
        self._measuring = ExitStack()

    def before_train(self, runner: Runner) -> None:
        """Find the ACmix layers."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        shares = PathShares(model)
        if not shares.layers:
            raise ValueError('PathWeightsHook: the model has no ACmix layers')
        self._shares = shares

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Begin to measure."""
        if self._is_time(runner):
            assert self._shares is not None, 'before_train was called'
            self._measuring.enter_context(self._shares.measuring())

    def _is_time(self, runner: Runner) -> bool:
        return runner.iter == 0 or self.every_n_train_iters(runner, self.interval)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Log what was measured."""
        assert self._shares is not None, 'before_train was called'
        asked = self._is_time(runner)
        self._measuring.close()
        scalars = {
            f'paths/{layer}/{name}': value
            for layer, share in self._shares.read().items()
            for name, value in vars(share).items()
        }
        if scalars:
            runner.visualizer.add_scalars(scalars, step=runner.iter + 1)
        elif asked:
            warnings.warn(
                'PathWeightsHook measured nothing: a model that torch.compile has compiled before '
                'does not call hooks. Train without compile to log the paths.',
                stacklevel=2,
            )
