# SPDX-License-Identifier: Apache-2.0
"""Draw how the ACmix layers of trained networks weigh attention and convolution.

    python tools/analysis/plot_paths.py RUN_OR_CHECKPOINT ... [--out paths.png]
    python tools/analysis/plot_paths.py shares.csv [--out paths.png]

A run is the work dir of a training whose config has ``custom_hooks =
[dict(type='PathWeightsHook')]``. The file shares.csv is what tools/analysis/path_shares.py writes:
each column of the picture is a config and mode, with means over the seeds.

The upper row of the picture shows alpha and beta of each layer, from the input to the output of the
network, and the share of the convolution path in what is summed; the lower row shows the shares
during the training. Each column is a run. Of a checkpoint, alpha and beta alone are known.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from statistics import fmean

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from acmix_mm.checkpoints.files import read_checkpoint
from acmix_mm.checkpoints.unwrap import unwrap
from acmix_mm.runtime import require_outputs
from acmix_mm.runtime.output import write_output
from acmix_mm.runtime.training_run import read_scalars

QUANTITIES = ('alpha', 'beta', 'convolution_share')
LABELS = {
    'alpha': 'alpha (attention)',
    'beta': 'beta (convolution)',
    'start': 'share of the convolution at first',
    'convolution_share': 'share of the convolution',
}


@dataclass
class Paths:
    """The path weights of a network.

    Attributes:
        name: Name of the run or the checkpoint.
        layers: Names of the layers, from the input to the output.
        last: The last value of each layer, by quantity.
        steps: Iterations at which shares were logged.
        shares: Shares of the convolution at these iterations, by layer.
    """

    name: str
    layers: list[str]
    last: dict[str, list[float]]
    steps: list[int] = field(default_factory=list)
    shares: dict[str, list[float]] = field(default_factory=dict)


def read_run(folder: Path) -> Paths:
    """Read what PathWeightsHook has logged in a work dir. A resumed training has several logs.

    Args:
        folder: Work dir of a training.

    Raises:
        ValueError: Nothing was logged.
    """
    rows: dict[int, dict[str, float]] = {}
    for row in read_scalars(folder):
        if any(key.startswith('paths/') for key in row):
            rows[int(row['step'])] = row
    if not rows:
        raise ValueError(
            f'{folder} has no log of PathWeightsHook; train with '
            "custom_hooks = [dict(type='PathWeightsHook')] in the config"
        )
    steps = sorted(rows)
    keys = [key for key in rows[steps[-1]] if key.endswith('/alpha')]
    layers = [key.removeprefix('paths/').removesuffix('/alpha') for key in keys]
    last = {
        quantity: [rows[steps[-1]][f'paths/{layer}/{quantity}'] for layer in layers]
        for quantity in QUANTITIES
    }
    shares = {
        layer: [rows[step][f'paths/{layer}/convolution_share'] for step in steps]
        for layer in layers
    }
    return Paths(folder.name, layers, last, steps, shares)


def read_weights(file: Path) -> Paths:
    """Read alpha and beta of each layer from a checkpoint.

    Args:
        file: A checkpoint of a network with ACmix layers.

    Raises:
        ValueError: It has no learned path weights.
    """
    state_dict = unwrap(read_checkpoint(file))
    alphas = {
        name.removesuffix('.mix.alpha'): value.item()
        for name, value in state_dict.items()
        if name.endswith('.mix.alpha')
    }
    if not alphas:
        raise ValueError(f'{file} has no learned weights of paths (....mix.alpha)')
    betas = [
        state_dict[f'{layer}.mix.beta'].item() if f'{layer}.mix.beta' in state_dict else 1 - alpha
        for layer, alpha in alphas.items()
    ]
    return Paths(file.name, [*alphas], dict(alpha=[*alphas.values()], beta=betas))


def read_shares(file: Path) -> list[Paths]:
    """Read the means over the seeds of each config and mode from shares.csv.

    Args:
        file: A file that tools/analysis/path_shares.py wrote.

    Raises:
        ValueError: It is no such file.
    """
    with file.open(newline='') as lines:
        rows = list(csv.DictReader(lines))
    networks = []
    try:
        for config, mode in dict.fromkeys((row['config'], row['mode']) for row in rows):
            here = [row for row in rows if (row['config'], row['mode']) == (config, mode)]
            layers = [*dict.fromkeys(row['layer'] for row in here)]
            columns = dict(alpha='alpha', beta='beta', start='start', convolution_share='end')
            last = {
                quantity: [
                    fmean(float(row[column]) for row in here if row['layer'] == layer)
                    for layer in layers
                ]
                for quantity, column in columns.items()
            }
            networks.append(Paths(f'{config}\n{mode}', layers, last))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{file} is no table of shares: {error!r}') from error
    if not networks:
        raise ValueError(f'{file} has no lines')
    return networks


def draw(networks: Sequence[Paths]) -> Figure:
    """Draw a column for each network.

    Args:
        networks: What was read of each.
    """
    timed = any(network.steps for network in networks)
    most = max(len(network.layers) for network in networks)
    width = max(4.5, 0.28 * most)
    figure = Figure(figsize=(width * len(networks), 7 if timed else 3.8), layout='constrained')
    axes = figure.subplots(2 if timed else 1, len(networks), squeeze=False, sharey='row')
    for column, network in zip(axes.T, networks, strict=True):
        _draw_depth(column[0], network)
        if network.steps:
            _draw_time(column[1], network)
        elif timed:
            column[1].set_axis_off()
    for row, label in zip(axes, ('weight or share', 'share of the convolution'), strict=False):
        row[0].set_ylabel(label)
    return figure


def _draw_depth(axes: Axes, network: Paths) -> None:
    places = range(len(network.layers))
    for quantity, values in network.last.items():
        style = {'start': ':', 'convolution_share': '--'}.get(quantity, '-')
        axes.plot(places, values, style, marker='o', markersize=4, label=LABELS[quantity])
    names = [layer.removeprefix('backbone.') for layer in network.layers]
    axes.set_xticks(places, names, rotation=90, fontsize=8)
    axes.set_title(network.name, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw_time(axes: Axes, network: Paths) -> None:
    colors = colormaps['viridis']
    for i, (layer, shares) in enumerate(network.shares.items()):
        depth = i / max(len(network.layers) - 1, 1)
        ends = i in (0, len(network.layers) - 1)
        name = layer.removeprefix('backbone.') if ends else None
        axes.plot(network.steps, shares, color=colors(0.9 * depth), label=name)
    axes.set_xlabel('iteration (dark: first layers, light: last layers)')
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _read(path: Path) -> list[Paths]:
    if path.is_dir():
        return [read_run(path)]
    return read_shares(path) if path.suffix == '.csv' else [read_weights(path)]


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the arguments name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('networks', nargs='+', type=Path, metavar='RUN_OR_CHECKPOINT')
    parser.add_argument('--out', default='paths.png', help='picture to write')
    args = parser.parse_args(argv)
    require_outputs({}, {'--out': args.out})
    suffix, content = Path(args.out).suffix.removeprefix('.'), BytesIO()
    try:
        networks = [network for path in args.networks for network in _read(path)]
        draw(networks).savefig(content, format=suffix or 'png', dpi=150)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(str(error))
    write_output(args.out, content.getvalue())
    print(args.out)


if __name__ == '__main__':
    main()
