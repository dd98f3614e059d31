# SPDX-License-Identifier: Apache-2.0
"""Draw the times of training steps that benchmarks/run.py has written.

    python -m benchmarks.chart docs/performance.csv docs/images/speed.png

Left: one layer with ACmix, as its authors released it and here, beside a plain 3x3 convolution, for
the sizes of the four stages of ResNet-50. Right: backbones with ACmix beside the plain ones.
"""

import argparse
import csv
import sys
from io import BytesIO
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from acmix_mm.runtime import require_outputs
from acmix_mm.runtime.output import write_output

from .cases import BOTH, STAGES

NAMES = {
    'released': 'released ACmix',
    'acmix': 'ACmix here',
    'conv3x3': '3x3 convolution',
    'mmdet': "mmdet's",
}
COLORS = {
    'released': 'tab:gray',
    'acmix': 'tab:blue',
    'conv3x3': 'tab:orange',
    'mmdet': 'tab:orange',
}
FAMILIES = {'resnet': 'ResNet-50', 'pvt': 'PVT-T', 'swin': 'Swin-T'}

# Milliseconds of each candidate, by comparison.
Times = dict[str, dict[str, float]]


def read_times(file: Path) -> Times:
    """Read the times of training steps.

    Args:
        file: CSV file of benchmarks/run.py.
    """
    times: Times = {}
    with file.open(newline='') as lines:
        for row in csv.DictReader(lines):
            if row['mode'] == BOTH:
                times.setdefault(row['comparison'], {}).update({
                    row['candidate']: float(row['milliseconds']),
                    row['baseline']: float(row['baseline_milliseconds']),
                })  # fmt: skip
    return times


def draw(times: Times) -> Figure:
    """Draw layers and backbones.

    Args:
        times: What was read.

    Raises:
        KeyError: A comparison is missing.
    """
    layers = {size: times[f'layer {size}'] for size in ('x'.join(map(str, s)) for s in STAGES)}
    backbones = {}
    for name, found in times.items():
        suite, *details = name.split()
        if suite == 'backbone':
            family, image = details
            backbones[f'{FAMILIES[family]}\n{image}'] = found
    figure = Figure(figsize=(9, 3.5), layout='constrained')
    left, right = figure.subplots(1, 2)
    _bars(left, layers, ('released', 'acmix', 'conv3x3'))
    left.set(title='one layer, channels x height x width', yscale='log')
    left.set_ylabel('forward + backward (ms)')
    _bars(right, backbones, ('acmix', 'mmdet'))
    right.set(title='backbones, height x width of the image')
    return figure


def _bars(axes: Axes, groups: Times, candidates: tuple[str, ...]) -> None:
    width = 0.8 / len(candidates)
    for i, candidate in enumerate(candidates):
        places = [group + (i - (len(candidates) - 1) / 2) * width for group in range(len(groups))]
        heights = [times[candidate] for times in groups.values()]
        bars = axes.bar(places, heights, width, label=NAMES[candidate], color=COLORS[candidate])
        axes.bar_label(bars, fmt='%.0f', fontsize=7)
    axes.set_xticks(range(len(groups)), list(groups), fontsize=8)
    axes.margins(y=0.12)
    axes.legend(fontsize=8)


def main(argv: list[str] | None = None) -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('times', type=Path, help='CSV file of benchmarks/run.py')
    parser.add_argument('out', help='picture to write, a .png file')
    args = parser.parse_args(argv)
    require_outputs({}, {'out': args.out})
    try:
        figure = draw(read_times(args.times))
    except OSError as error:
        sys.exit(f'{args.times} cannot be read: {error.strerror}.')
    except KeyError as error:
        sys.exit(f'{args.times}: {error.args[0]} is missing; run all suites of benchmarks/run.py.')
    content = BytesIO()
    figure.savefig(content, format='png', dpi=110)
    write_output(args.out, content.getvalue())


if __name__ == '__main__':
    main()
