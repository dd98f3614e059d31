# SPDX-License-Identifier: Apache-2.0
"""Measure networks whose weights and inputs are channels_last against contiguous ones.

    python -m benchmarks.memory_format [--rounds 9] [--threads 2]

The two run in turn in one process. A ratio is the median over the rounds of the time with
channels_last divided by the time with contiguous tensors, followed by its quartiles: above 1,
channels_last is slower.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from acmix_mm.layers import ACmix
from acmix_mm.registry import MODELS
from acmix_mm.runtime.markdown import table

from .cases import BOTH, FORWARD
from .measure import run, tensors_of, time_in_turn

FORMATS = (torch.channels_last, torch.contiguous_format)
IMAGE = (1, 3, 256, 384)


def backbone(**cfg: object) -> nn.Module:
    """Build a backbone with random weights."""
    return MODELS.build(cfg)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    'ACmix, 64 channels': (partial(ACmix, 64, 64), (1, 64, 128, 192)),
    'ACmixResNet-50': (partial(backbone, type='ACmixResNet', depth=50), IMAGE),
    'ACmixSAN-10': (partial(backbone, type='ACmixSAN', depth=10), IMAGE),
    'ACmixPVT-T': (partial(backbone, type='ACmixPVT', arch='tiny'), IMAGE),
    'ACmixSwin-T': (partial(backbone, type='ACmixSwin'), IMAGE),
    "mmdet's ResNet-50": (partial(backbone, type='mmdet.ResNet', depth=50), IMAGE),
}


def prepare(
    network: nn.Module, shape: tuple[int, ...], memory_format: torch.memory_format, mode: str
) -> Callable[[], None]:
    """Return a function that runs a network and an input of a memory format."""
    network.to(memory_format=memory_format)  # type: ignore[call-overload]
    network.train(mode == BOTH)
    x = torch.randn(shape).to(memory_format=memory_format)
    return partial(run, network, x.requires_grad_(mode == BOTH), mode)


def compare(name: str, mode: str, rounds: int) -> str:
    """Return the ratio of the times of a network, with its quartiles."""
    build, shape = NETWORKS[name]
    functions = {str(f): prepare(build(), shape, f, mode) for f in FORMATS}
    seconds = time_in_turn(functions, rounds)
    ratios = [time / base for time, base in zip(*seconds.values(), strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method='inclusive')
    return f'{median:.2f} ({low:.2f}-{high:.2f})'


def format_of_output(name: str) -> str:
    """Return the memory format of what a network returns if all that it gets is channels_last."""
    build, shape = NETWORKS[name]
    network = build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.eval()  # which mmdet's ResNet does not return
    with torch.no_grad():
        outputs = tensors_of(network(torch.randn(shape).to(memory_format=torch.channels_last)))
    formats = {memory_format_of(output) for output in outputs}
    return ', '.join(sorted(formats))


def memory_format_of(x: Tensor) -> str:
    """Return ``'contiguous'``, ``'channels_last'`` or ``'other'``."""
    if x.is_contiguous():
        return 'contiguous'
    return 'channels_last' if x.is_contiguous(memory_format=torch.channels_last) else 'other'


def main(argv: list[str] | None = None) -> None:
    """Print a table with a row for each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--rounds', type=int, default=9, help='at least 2 (default: %(default)s)')
    parser.add_argument(
        '--threads',
        type=int,
        default=torch.get_num_threads(),
        help='number of threads (default: that of torch, %(default)s here)',
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    rows = [
        (name, format_of_output(name), *(compare(name, m, args.rounds) for m in (FORWARD, BOTH)))
        for name in NETWORKS
    ]
    print(table(('network', 'output', FORWARD, BOTH), rows), end='')


if __name__ == '__main__':
    main()
