# SPDX-License-Identifier: Apache-2.0
"""Measure what PathWeightsHook costs at its default interval.

    python -m benchmarks.path_weights [--rounds 15] [--threads 2]

The hook watches the modules that sum the paths. They alone run with the hook, which measures and
logs, and without it, on paths that were recorded, in turn with a forward and backward pass of the
backbone. The cost is the median difference of the two, divided by the time of the passes between
two measurements. In a training, heads, losses and the optimizer take time too, so that the hook's
share of it is smaller.
"""

import argparse
import statistics
from functools import partial
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.visualization import Visualizer
from torch import Tensor, nn

from acmix_mm.hooks import PathWeightsHook
from acmix_mm.layers import PathMix
from acmix_mm.preflight.arguments import whole_number
from acmix_mm.registry import MODELS
from acmix_mm.runtime.markdown import table

from .cases import BOTH
from .measure import run, time_in_turn

NETWORKS = {
    'ACmixResNet-26, 16 channels': (dict(depth=26, base_channels=16), (8, 3, 256, 256)),
    'ACmixResNet-50': (dict(depth=50), (2, 3, 320, 320)),
}


def recorded_paths(network: nn.Module, x: Tensor) -> list[tuple[nn.Module, Any]]:
    """Return the modules that sum the paths, and what they sum for an input."""
    found: list[tuple[nn.Module, Any]] = []
    mixes = [module for module in network.modules() if isinstance(module, PathMix)]
    handles = [
        module.register_forward_pre_hook(lambda *call: found.append(call)) for module in mixes
    ]
    with torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def mix(calls: list[tuple[nn.Module, Any]]) -> None:
    """Sum all paths."""
    for module, paths in calls:
        module(*paths)


def mix_observed(
    calls: list[tuple[nn.Module, Any]], hook: PathWeightsHook, runner: SimpleNamespace
) -> None:
    """Sum all paths in an iteration that the hook measures."""
    hook.before_train_iter(runner, 0)
    mix(calls)
    hook.after_train_iter(runner, 0)


def measure(name: str, folder: str, rounds: int) -> tuple[str, ...]:
    """Return the row of a network."""
    cfg, shape = NETWORKS[name]
    network = MODELS.build(dict(type='ACmixResNet', **cfg)).train()
    x = torch.randn(shape, requires_grad=True)
    calls = recorded_paths(network, x)
    visualizer = Visualizer(vis_backends=[dict(type='LocalVisBackend')], save_dir=folder)
    hook, runner = PathWeightsHook(), SimpleNamespace(model=network, iter=0, visualizer=visualizer)
    hook.before_train(runner)
    steps, plain, with_hook = time_in_turn(
        dict(
            step=partial(run, network, x, BOTH),
            mix=partial(mix, calls),
            mix_observed=partial(mix_observed, calls, hook, runner),
        ),
        rounds,
    ).values()
    step = statistics.median(steps)
    extra = statistics.median(b - a for a, b in zip(plain, with_hook, strict=True))
    share = extra / (hook.interval * step)
    return (
        name,
        'x'.join(map(str, shape)),
        f'{1e3 * step:.0f}',
        f'{1e3 * extra:.1f}',
        str(hook.interval),
        f'{share:.2%}',
    )


def main(argv: list[str] | None = None) -> None:
    """Print a table with a row for each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--rounds', type=whole_number(1), default=15, help='default: %(default)s')
    parser.add_argument(
        '--threads',
        type=whole_number(1),
        default=torch.get_num_threads(),
        help='number of threads (default: that of torch, %(default)s here)',
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    header = ('backbone', 'images', 'step (ms)', 'hook (ms)', 'interval', 'cost')
    with TemporaryDirectory() as folder:
        rows = [measure(name, folder, args.rounds) for name in NETWORKS]
    print(table(header, rows), end='')


if __name__ == '__main__':
    main()
