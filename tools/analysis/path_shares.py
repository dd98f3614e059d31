# SPDX-License-Identifier: Apache-2.0
"""Measure what each path does in networks that compare_paths.py has trained.

    python tools/analysis/path_shares.py FOLDER [--modes learned balanced] [--page PAGE]

FOLDER is the --work-dir of compare_paths.py, or contains several. For each finished run in it, the
tool writes

* to ``shares.csv``, for each layer, alpha and beta of the trained network, and the share of the
  convolution path in what is summed (root mean squares), at the start and at the end of the
  training, both on the first batch of the training;
* to ``silenced.csv``, the metric of the network as it is, without its attention paths, and without
  its convolution paths. Before each test, all batch norms estimate their statistics again on 20
  batches of the training.

Runs that both files have already are skipped. The tables that the tool prints are made from the
files alone; --page writes them between the marks ``shares`` and ``silenced`` of a Markdown page,
with the picture that ``tools/analysis/plot_paths.py FOLDER/shares.csv`` draws.
"""

import argparse
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from acmix_mm.hooks import BalancePathsHook, PathShare, PathShares
from acmix_mm.hooks.balance_paths import training_forward
from acmix_mm.layers import PathMix
from acmix_mm.runtime import build_runner
from acmix_mm.runtime.markdown import replace_between_marks, table
from acmix_mm.runtime.output import write_figure, write_output
from acmix_mm.runtime.rows import read_rows, write_rows
from acmix_mm.runtime.training_run import TrainingRun
from acmix_mm.runtime.work_dir import newest_checkpoint

COMPARE: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name('compare_paths.py')))
PLOT: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name('plot_paths.py')))
METRICS: dict[str, tuple[str, float]] = COMPARE['METRICS']
PATHS = ('attention', 'convolution')
BATCHES = 20
COLUMNS = dict(alpha='alpha', beta='beta', start='share at the start', end='at the end')


@dataclass(frozen=True)
class LayerShare:
    """A layer of a trained network.

    Attributes:
        config: Name of the config.
        mode: Mode of compare_paths.py.
        seed: Seed of the training.
        layer: Name of the layer.
        alpha: Weight of its attention path after the training.
        beta: Weight of its convolution path after the training.
        start: Share of the convolution path before the training.
        end: Its share after the training.
    """

    config: str
    mode: str
    seed: int
    layer: str
    alpha: float
    beta: float
    start: float
    end: float


@dataclass(frozen=True)
class Silenced:
    """A test of a network without one of its paths.

    Attributes:
        config: Name of the config.
        mode: Mode of compare_paths.py.
        seed: Seed of the training.
        silenced: The path that is left out, ``none`` for the network as it is.
        metric: Name of the metric.
        value: Its value.
    """

    config: str
    mode: str
    seed: int
    silenced: str
    metric: str
    value: float


class Network:
    """A trained network with the data of its training.

    Args:
        run: Folder of the run.
        config: File of the config with which it began.
        scratch: Folder for logs.
    """

    def __init__(self, run: Path, config: Path, scratch: str) -> None:
        cfg = Config.fromfile(config)
        cfg.work_dir = str(run)
        self.checkpoint = newest_checkpoint(cfg)
        warm_start = cfg.get('load_from')
        cfg.update(work_dir=scratch, load_from=None, resume=False, log_level='WARNING')
        # mmengine has one visualizer of a name in a process, with the folder of the first run.
        cfg.visualizer = dict(cfg.get('visualizer') or dict(type='Visualizer'), name=scratch)
        self.runner: Runner = build_runner(cfg)
        self.model: Any = self.runner.model
        # The training draws random numbers in this order: its loop, then the weights.
        loop = self.runner.train_loop
        self.model.init_weights()
        if warm_start:
            self.runner.load_checkpoint(warm_start)
        self.batches = [*islice(iter(loop.dataloader), BATCHES)]

    def shares(self) -> tuple[dict[str, PathShare], dict[str, PathShare]]:
        """Return the shares of the layers before and after the training."""
        for hook in self.runner.hooks:
            if isinstance(hook, BalancePathsHook):
                hook.before_train_iter(self.runner, 0, self.batches[0])
        before = self._shares()
        self.load()
        return before, self._shares()

    def load(self) -> None:
        """Load the trained weights."""
        self.runner.load_checkpoint(str(self.checkpoint))

    def _shares(self) -> dict[str, PathShare]:
        shares = PathShares(self.model)
        self.model.train()
        with torch.no_grad(), shares.measuring():
            training_forward(self.model, self.batches[0])()
        return shares.read()

    def test_without(self, path: str) -> tuple[str, float]:
        """Return name and value of the metric without a path, or as it is (``none``)."""
        self.load()
        with silenced(self.model, path):
            update_bn(self._images(), self.model)
            metrics = self.runner.test()
        for name, (label, factor) in METRICS.items():
            if name in metrics:
                return label, round(factor * metrics[name], 3)
        raise ValueError(f'the test gave no {" or ".join(METRICS)}')

    def _images(self) -> Iterator[Tensor]:
        for batch in self.batches:
            yield self.model.data_preprocessor(deepcopy(batch), training=True)['inputs']


@contextmanager
def silenced(model: nn.Module, path: str) -> Iterator[None]:
    """Leave out the attention or the convolution path of all layers that have both."""
    mixes = [
        module
        for module in model.modules()
        if isinstance(module, PathMix) and module.uses_attention and module.uses_convolution
    ]
    for mix in mixes:
        mix.uses_attention, mix.uses_convolution = path != 'attention', path != 'convolution'
    try:
        yield
    finally:
        for mix in mixes:
            mix.uses_attention = mix.uses_convolution = True


def measure(run: Path) -> tuple[list[LayerShare], list[Silenced]]:
    """Measure the network of a run, whose folder is ``<config>/<mode>/seed<seed>``."""
    config, mode = run.parts[-3:-1]
    seed = int(run.name.removeprefix('seed'))
    with TemporaryDirectory() as scratch:
        # A training that is resumed overwrites the config in its folder, not that of its first log.
        logs = run.glob('*/vis_data/config.py')
        network = Network(run, min(logs, default=run / f'{config}.py'), scratch)
        before, after = network.shares()
        layers = [
            LayerShare(
                *(config, mode, seed, name, round(share.alpha, 4), round(share.beta, 4)),
                *(round(s.convolution_share, 4) for s in (before[name], share)),
            )
            for name, share in after.items()
        ]
        tests = [
            Silenced(config, mode, seed, path, *network.test_without(path))
            for path in ('none', *PATHS)
        ]
    return layers, tests


def find_runs(folder: Path, modes: Sequence[str]) -> list[Path]:
    """Return the folders of finished runs of these modes.

    Raises:
        ValueError: Two of them have the same config, mode and seed.
    """
    runs: dict[tuple[str, ...], Path] = {}
    for mode in modes:
        for run in sorted(folder.resolve().rglob(f'{mode}/seed*')):
            if TrainingRun(str(run / f'{run.parts[-3]}.py'), run).metrics():
                other = runs.setdefault(run.parts[-3:], run)
                if other != run:
                    raise ValueError(f'{other} and {run} cannot be told apart in one table')
    return [*runs.values()]


def shares_report(rows: Sequence[LayerShare]) -> str:
    """Format, for each config, a table of its layers: means over the seeds of each mode."""
    text = ''
    for config in dict.fromkeys(row.config for row in rows):
        here = [row for row in rows if row.config == config]
        modes = [*dict.fromkeys(row.mode for row in here)]
        head = ['layer'] + [f'{mode}: {label}' for mode in modes for label in COLUMNS.values()]
        body = []
        for layer in dict.fromkeys(row.layer for row in here):
            cells = [layer.removeprefix('backbone.')]
            for mode in modes:
                seeds = [row for row in here if (row.layer, row.mode) == (layer, mode)]
                cells += [f'{fmean(getattr(row, name) for row in seeds):.2f}' for name in COLUMNS]
            body.append(cells)
        text += f'{config}:\n\n{table(head, body)}\n'
    return text


def silenced_report(rows: Sequence[Silenced]) -> str:
    """Format a table of the metrics, and their differences from those of the whole network."""
    values = {(row.config, row.mode, row.seed, row.silenced): row.value for row in rows}
    body = []
    for config, mode in dict.fromkeys((row.config, row.mode) for row in rows):
        here = [row for row in rows if (row.config, row.mode) == (config, mode)]
        seeds = [*dict.fromkeys(row.seed for row in here)]
        whole = [values[config, mode, seed, 'none'] for seed in seeds]
        cells = [config, mode, here[0].metric, str(len(seeds)), f'{fmean(whole):.2f}']
        for path in PATHS:
            gains = [
                values[config, mode, seed, path] - value
                for seed, value in zip(seeds, whole, strict=True)
            ]
            cell = f'{fmean(gains):+.2f}'
            if len(gains) > 1:
                cell += f' ± {COMPARE["difference"](gains).half_width:.2f}'
            cells.append(cell)
        body.append(cells)
    head = ('config', 'mode', 'metric', 'seeds', 'whole', *(f'without {path}' for path in PATHS))
    return table(head, body) if body else ''


def main(argv: Sequence[str] | None = None) -> None:
    """Measure runs, and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', type=Path, metavar='FOLDER')
    parser.add_argument('--modes', nargs='+', default=('learned', 'balanced', 'fast-mix'))
    parser.add_argument('--page', type=Path, help='Markdown page into which the tables are written')
    args = parser.parse_args(argv)
    shares_file, silenced_file = (args.folder / f'{name}.csv' for name in ('shares', 'silenced'))
    try:
        layers = read_rows(shares_file, LayerShare) if shares_file.exists() else []
        tests = read_rows(silenced_file, Silenced) if silenced_file.exists() else []
        known = {(row.config, row.mode, f'seed{row.seed}') for row in tests}
        # The second file is written last: what it lacks was interrupted.
        layers = [row for row in layers if (row.config, row.mode, f'seed{row.seed}') in known]
        runs = [run for run in find_runs(args.folder, args.modes) if run.parts[-3:] not in known]
        for i, run in enumerate(runs, 1):
            found = measure(run)
            layers, tests = layers + found[0], tests + found[1]
            write_rows(shares_file, layers, LayerShare)
            write_rows(silenced_file, tests, Silenced)
            print(f'{i}/{len(runs)} {run}', flush=True)
        if not tests and not silenced_file.exists():
            raise ValueError(f'{args.folder} has no finished run of {", ".join(args.modes)}')
        parts = dict(shares=shares_report(layers), silenced=silenced_report(tests))
        if args.page:
            page = args.page.read_text()
            if layers:
                picture = f'images/{args.page.stem}_shares.png'
                parts['shares'] += f'![Weights and shares over the layers]({picture})\n'
                write_figure(
                    args.page.parent / picture, PLOT['draw'](PLOT['read_shares'](shares_file))
                )
            for name, text in parts.items():
                page = replace_between_marks(page, name, 'tools/analysis/path_shares.py', text)
            write_output(args.page, page)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print('\n'.join(parts.values()))


if __name__ == '__main__':
    main()
