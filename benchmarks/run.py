# SPDX-License-Identifier: Apache-2.0
"""Measure ACmix against the released formula, plain convolutions and plain backbones.

    python -m benchmarks.run [--suites layer ...] [--quick] [--page docs/performance.md]

Candidates of a comparison run in turn (A B A B ...) in one process; the result is the median of
their ratios within a round, with its quartiles, because a busy machine slows both sides of a ratio.
Peak memory is that of a fresh process for each candidate, which needs Linux. The command writes
``benchmark.json``, ``benchmark.md`` and ``scaling.png`` to ``--out``, prints the tables, puts them
into ``--page`` and the time of every candidate into a CSV file beside it.
"""

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from acmix_mm.runtime.markdown import replace_between_marks

from .cases import BUILDERS, comparisons
from .measure import (
    compare,
    measure_memory,
    measure_scaling,
    print_peak_bytes,
    print_scaling_times,
    roofline,
)
from .report import Results, targets

SCALING_SIDES = (64, 128, 256, 512)


def describe_machine(rounds: int) -> dict[str, Any]:
    """Describe what the figures depend on."""
    return dict(
        processor=platform.processor() or platform.machine(),
        capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        **{key: round(value, 1) for key, value in roofline(rounds).items()},
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description='Measure ACmix on this machine.')
    suites = [*BUILDERS, 'scaling']
    parser.add_argument('--suites', nargs='+', choices=suites, default=suites)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark'))
    parser.add_argument('--page', type=Path, help='Markdown page whose tables are replaced')
    parser.add_argument('--rounds', type=int, default=9, help='rounds, at least 2')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--quick', action='store_true', help='maps of an eighth of the size')
    # Options of the fresh processes, see measure.py.
    parser.add_argument('--peak-of', type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument('--scaling-of', type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure, write and print."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.peak_of:
        return print_peak_bytes(*args.peak_of)
    if args.scaling_of:
        return print_scaling_times(*args.scaling_of)
    listed = comparisons(args.suites, args.quick)
    results = Results()
    results.machine = describe_machine(args.rounds)
    for comparison in listed:
        print(f'{comparison} ...', file=sys.stderr)
        results.times += compare(comparison, args.rounds)
        results.memory += measure_memory(comparison, results.memory)
    args.out.mkdir(parents=True, exist_ok=True)
    if 'scaling' in args.suites:
        sides = [side // (8 if args.quick else 1) for side in SCALING_SIDES]
        results.scaling = measure_scaling(sides, args.rounds)
        results.plot(args.out / 'scaling.png')
    (args.out / 'benchmark.json').write_text(results.to_json())
    markdown = results.to_markdown(listed)
    if set(args.suites) == {*BUILDERS, 'scaling'}:
        markdown = f'{targets(results, listed)}\n{markdown}'
    (args.out / 'benchmark.md').write_text(markdown)
    if args.page:
        page = replace_between_marks(args.page.read_text(), 'figures', 'benchmarks', markdown)
        args.page.write_text(page)
        args.page.with_suffix('.csv').write_text(results.to_csv())
        if results.scaling:
            results.plot(args.page.parent / 'images' / 'scaling.png')
    print(markdown)


if __name__ == '__main__':
    main()
