# SPDX-License-Identifier: Apache-2.0
"""Measure ACmix against the released formula, plain convolutions and plain backbones.

    python -m benchmarks.run [--suites layer ...] [--quick] [--page docs/performance.md]

The candidates of a comparison run in turn in one process. Each round gives the ratio of their
times; the result is the median of these ratios with its quartiles, because a busy machine slows
down both sides of a ratio. Peak memory is measured in a fresh process for each candidate, which
needs Linux.

The command prints the tables and writes ``benchmark.json``, ``benchmark.md`` and ``scaling.png`` to
``--out``. With ``--page`` it also replaces the tables of that page, and writes the times to a CSV
file of the same name and the plot to ``images/scaling.png`` beside it.
"""

import argparse
import datetime
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import acmix_mm
from acmix_mm.runtime.markdown import replace_between_marks
from acmix_mm.runtime.output import write_output

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

SUITES = [*BUILDERS, 'scaling']
SCALING_SIDES = (64, 128, 256, 512)


def describe_environment(rounds: int) -> dict[str, Any]:
    """Return what the figures depend on: date, versions, and the speed of the processor."""
    return dict(
        date=datetime.date.today().isoformat(),
        acmix_mm=acmix_mm.__version__,
        torch=torch.__version__,
        processor=platform.processor() or platform.machine(),
        capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        **{key: round(value, 1) for key, value in roofline(rounds).items()},
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--suites', nargs='+', choices=SUITES, default=SUITES, help='what to measure (default: all)'
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/benchmark'),
        help='folder for the results (default: %(default)s)',
    )
    parser.add_argument('--page', type=Path, help='Markdown page whose tables are replaced')
    parser.add_argument(
        '--rounds', type=int, default=9, help='number of rounds, at least 2 (default: %(default)s)'
    )
    parser.add_argument(
        '--threads',
        type=int,
        default=torch.get_num_threads(),
        help='number of threads (default: that of torch, %(default)s here)',
    )
    parser.add_argument(
        '--quick', action='store_true', help='measure maps of an eighth of the height and width'
    )
    # For the fresh processes that measure.py starts.
    parser.add_argument('--peak-of', type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument('--scaling-of', type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure the suites and report the results."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.peak_of:
        return print_peak_bytes(*args.peak_of)
    if args.scaling_of:
        return print_scaling_times(*args.scaling_of)
    listed = comparisons(args.suites, args.quick)
    results = Results()
    results.environment = describe_environment(args.rounds)
    for comparison in listed:
        print(f'{comparison} ...', file=sys.stderr)
        results.times += compare(comparison, args.rounds)
        results.memory += measure_memory(comparison, results.memory)
    args.out.mkdir(parents=True, exist_ok=True)
    if 'scaling' in args.suites:
        sides = [side // (8 if args.quick else 1) for side in SCALING_SIDES]
        results.scaling = measure_scaling(sides, args.rounds)
        results.plot(args.out / 'scaling.png')
    write_output(args.out / 'benchmark.json', results.to_json())
    markdown = results.to_markdown(listed)
    if set(args.suites) == set(SUITES) and not args.quick:  # targets are for the full sizes
        markdown = f'{targets(results, listed)}\n{markdown}'
    write_output(args.out / 'benchmark.md', markdown)
    if args.page:
        page = args.page.read_text()
        page = replace_between_marks(page, 'figures', 'benchmarks/run.py', markdown)
        write_output(args.page, page)
        write_output(args.page.with_suffix('.csv'), results.to_csv())
        if results.scaling:
            results.plot(args.page.parent / 'images' / 'scaling.png')
    print(markdown)


if __name__ == '__main__':
    main()
