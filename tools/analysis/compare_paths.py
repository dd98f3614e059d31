# SPDX-License-Identifier: Apache-2.0
"""Train networks with both paths of ACmix, with one of them, and with plain convolutions.

    python tools/analysis/compare_paths.py [CONFIG ...] --seeds 10 --jobs 2 --data-root data

Each config is trained in every mode with each seed, on one thread, ``--jobs`` trainings at a time,
and its last checkpoint is tested. Run the same command again to continue after an interruption:
finished runs are skipped, and one that fails does not stop the others. A mode is a set of options
of the config, see MODES. Other --options need another --work-dir. --quick trains for 10 steps, to
see whether everything runs: its numbers mean nothing.

``results.csv`` in --work-dir has a line for each run. What it has already, such as the runs of
another machine, is neither run nor read again: delete it to collect the results of the folders of
the runs anew. ``results.md`` and ``results.png`` are made from it alone, and --report makes them
again without training, of several such files together if need be. They show mean and standard
deviation of each mode, and its difference from the mode ``learned``, paired by seed, with the
interval of Student's t distribution at the level at which Holm's method tests it. The verdicts
"better" and "worse" on the main modes hold together at 95 %, and so do those on all other modes.

Rows that answer whether a comparison is fair:

    --modes attention-wide convolution-wide     more multiply-adds than ``learned``
    --equal-seconds --modes attention plain     as many seconds as ``learned`` took
    --modes plain-lr1e-3 plain-lr4e-3 ... --first-seed 100 --seeds 1    other learning rates
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from math import isfinite, nan
from pathlib import Path
from statistics import fmean, stdev

import torch
from matplotlib.figure import Figure
from scipy import stats

from acmix_mm.complexity import Complexity, measure_complexity
from acmix_mm.preflight.arguments import whole_number
from acmix_mm.registry import MODELS
from acmix_mm.runtime.markdown import replace_between_marks, table
from acmix_mm.runtime.output import write_figure, write_output
from acmix_mm.runtime.rows import read_rows, write_rows
from acmix_mm.runtime.training_run import (
    RunError,
    TrainingRun,
    end_all,
    read_scalars,
    signals_interrupt,
)
from acmix_mm.runtime.work_dir import locked_folder

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [
    ROOT / 'configs' / 'evidence' / f'{name}.py'
    for name in (
        'retinanet_resnet26-acmix-narrow_bccd',
        'sem-fpn_resnet26-acmix-narrow_camvid-180x240',
    )
]
BASELINE = 'learned'
WEIGHTS = 'model.backbone.acmix_cfg.path_weights'
WIDER = ['model.backbone.base_channels=20', 'model.neck.in_channels=[80,160,320,640]']
RATE = 'optim_wrapper.optimizer.lr'
MODES: dict[str, list[str]] = {
    BASELINE: [],
    'attention': [f'{WEIGHTS}=(1,0)'],
    'convolution': [f'{WEIGHTS}=(0,1)'],
    'plain': ['model.backbone.stage_with_acmix=(False,False,False,False)'],
    'complementary': [f'{WEIGHTS}=complementary'],
    'equal': [f'{WEIGHTS}=(1,1)'],
    # About a third more multiply-adds than `learned`: the next width that four heads divide.
    'attention-wide': [f'{WEIGHTS}=(1,0)', *WIDER],
    'convolution-wide': [f'{WEIGHTS}=(0,1)', *WIDER],
    'balanced': ['default_hooks.balance.type=BalancePathsHook'],
    # Ten times the learning rate for alpha and beta.
    'fast-mix': ['optim_wrapper.paramwise_cfg.custom_keys.mix.lr_mult=10'],
}
MAIN_MODES = (BASELINE, 'attention', 'convolution', 'plain')
MODES |= {
    f'{mode}-lr{rate}': [*MODES[mode], f'{RATE}={rate}']
    for mode in MAIN_MODES
    for rate in ('1e-3', '2e-3', '4e-3')
}
# Of the image on which the multiply-adds of backbones are counted.
SHAPE = (180, 240)
# Metrics by their names in mmengine's logs: their names in tables, and their factor.
METRICS = {'coco/bbox_mAP': ('box AP', 100), 'mIoU': ('mIoU', 1)}
LEVEL = 0.95
QUICK_STEPS = 10


@dataclass(frozen=True)
class Result:
    """A trained and tested network.

    Attributes:
        config: Name of the config.
        mode: A key of ``MODES``.
        seed: Seed of the training.
        steps: Iterations of the training, or epochs if the config counts them.
        metric: Name of the metric.
        value: Its value.
        loss: Loss that was logged last, nan if none was.
        seconds: Seconds of the training and the test, 0 if it was interrupted.
        params: Parameters of the backbone.
        macs: Multiply-adds of the backbone for an image of ``SHAPE``.
    """

    config: str
    mode: str
    seed: int
    steps: int
    metric: str
    value: float
    loss: float
    seconds: float
    params: int
    macs: int


@dataclass(frozen=True)
class Difference:
    """The mean difference of a mode from the baseline, over the seeds that both have.

    Attributes:
        mean: Mean difference, positive if the baseline is better.
        half_width: Half of the width of its interval.
        same_sign: How many seeds agree with the sign of the mean.
        seeds: How many there are.
    """

    mean: float
    half_width: float
    same_sign: int
    seeds: int

    @property
    def verdict(self) -> str:
        """What the interval allows to say of the baseline.

        Differences that are all equal, as metrics that are rounded may give, say nothing about how
        they vary.
        """
        if self.half_width == 0:
            return 'too few values'
        if abs(self.mean) <= self.half_width:
            return 'no difference seen'
        return 'better' if self.mean > 0 else 'worse'


def compare(results: Sequence[Result]) -> dict[tuple[str, str], Difference]:
    """Compare every mode with the baseline, paired by seed.

    The main modes are one family of comparisons, and the others are a second one, so that rows that
    are added later change no verdict on the main modes. In each family, by Holm's method, the k-th
    smallest of m p values is compared with 5 % / (m - k + 1), and its interval has that level. From
    the first one on that exceeds it, the level stays, so that no interval of a larger p value
    excludes 0.

    Args:
        results: Results of one or several configs.

    Returns:
        dict: Differences by config and mode, for modes with two or more common seeds.
    """
    others = [r for r in results if r.mode not in MAIN_MODES or r.mode == BASELINE]
    main = [r for r in results if r.mode in MAIN_MODES]
    return _compare_family(main) | _compare_family(others)


def _compare_family(results: Sequence[Result]) -> dict[tuple[str, str], Difference]:
    by_run = {(r.config, r.mode, r.seed): r.value for r in results}
    pairs: dict[tuple[str, str], list[float]] = {}
    for (config, mode, seed), value in by_run.items():
        if mode != BASELINE and (config, BASELINE, seed) in by_run:
            # As many digits as the values have: equal gains must be equal numbers.
            gain = round(by_run[config, BASELINE, seed] - value, 6)
            pairs.setdefault((config, mode), []).append(gain)
    pairs = {key: gains for key, gains in pairs.items() if len(gains) > 1}
    differences, left = {}, len(pairs)
    for key in sorted(pairs, key=lambda key: _p_value(pairs[key])):
        risk = (1 - LEVEL) / left
        differences[key] = difference(pairs[key], risk)
        if _p_value(pairs[key]) < risk:
            left -= 1
    return differences


def _p_value(gains: Sequence[float]) -> float:
    if len(set(gains)) == 1:
        return 1.0  # no verdict, so that it must not raise the level of the others
    return stats.ttest_1samp(gains, 0).pvalue


def difference(gains: Sequence[float], risk: float = 1 - LEVEL) -> Difference:
    """Return the mean of two or more differences, with an interval of level ``1 - risk``."""
    mean, error = fmean(gains), stdev(gains) / len(gains) ** 0.5
    half_width = stats.t.ppf(1 - risk / 2, len(gains) - 1) * error
    return Difference(mean, half_width, sum(g * mean > 0 for g in gains), len(gains))


def report(results: Sequence[Result]) -> str:
    """Write the tables of all configs, in Markdown."""
    differences = compare(results)
    text = ''
    for config in dict.fromkeys(result.config for result in results):
        here = [result for result in results if result.config == config]
        rows = []
        for mode in dict.fromkeys(result.mode for result in here):
            runs = [result for result in here if result.mode == mode]
            values = [run.value for run in runs]
            spread = f'{stdev(values):.2f}' if len(values) > 1 else ''
            row = [mode, str(len(runs)), f'{fmean(values):.2f}', spread]
            rows.append([*row, *_cells(differences.get((config, mode))), *_costs(runs)])
        height, width = SHAPE
        heads = (
            'mode', 'seeds', f'mean {here[0].metric}', 'standard deviation',
            f'{BASELINE} minus it', 'seeds of that sign', f'{BASELINE} is',
            'steps', 'seconds of the fastest', 'parameters of the backbone (M)',
            f'its multiply-adds at {height}x{width} (G)',
        )  # fmt: skip
        text += f'{config}:\n\n{table(heads, rows)}\n'
    return text


def answer(results: Sequence[Result]) -> str:
    """Write a table of the differences of the baseline from the other main modes, in Markdown."""
    differences = compare(results)
    others = [mode for mode in MAIN_MODES if mode != BASELINE]
    rows = []
    for config in dict.fromkeys(result.config for result in results):
        cells = [_cells(differences.get((config, mode))) for mode in others]
        metric = next(result.metric for result in results if result.config == config)
        rows.append([config, metric, *(': '.join(filter(None, [c[0], c[2]])) for c in cells)])
    return table(('config', 'metric', *(f'{BASELINE} minus {mode}' for mode in others)), rows)


def _cells(difference: Difference | None) -> list[str]:
    if difference is None:
        return ['', '', '']
    d = difference
    return [f'{d.mean:+.2f} ± {d.half_width:.2f}', f'{d.same_sign} of {d.seeds}', d.verdict]


def _costs(runs: Sequence[Result]) -> list[str]:
    seconds = [run.seconds for run in runs if run.seconds]
    last = runs[-1]
    return [
        str(last.steps),
        f'{min(seconds):.0f}' if seconds else '',
        f'{last.params / 1e6:.3f}',
        f'{last.macs / 1e9:.3f}',
    ]


def draw(results: Sequence[Result]) -> Figure:
    """Draw a dot for each run, lines between those of one seed, and the mean of each mode."""
    configs = list(dict.fromkeys(result.config for result in results))
    figure = Figure(figsize=(5.5 * len(configs), 4), layout='constrained')
    for axes, config in zip(
        figure.subplots(1, len(configs), squeeze=False)[0], configs, strict=True
    ):
        here = [result for result in results if result.config == config]
        modes = list(dict.fromkeys(result.mode for result in here))
        for seed in sorted({result.seed for result in here}):
            points = [(modes.index(r.mode), r.value) for r in here if r.seed == seed]
            axes.plot(
                *zip(*sorted(points), strict=True), 'o-', color='0.7', markersize=3, linewidth=0.8
            )
        for place, mode in enumerate(modes):
            values = [result.value for result in here if result.mode == mode]
            error = 0.0
            if len(values) > 1:
                error = (
                    stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1)
                    * stdev(values)
                    / len(values) ** 0.5
                )
            axes.errorbar(place, fmean(values), error, fmt='D', color='C0', capsize=4, zorder=3)
        axes.set_xticks(range(len(modes)), modes, rotation=20)
        axes.set_ylabel(here[0].metric)
        axes.set_title(config, fontsize=9)
        axes.grid(axis='y', alpha=0.3)
    return figure


def read_results(*files: Path) -> list[Result]:
    """Read one or several results.csv.

    Raises:
        ValueError: One is not such a file, a value is not a finite number, or a run is there twice.
    """
    results: dict[tuple[str, str, int], Result] = {}
    for file in files:
        try:
            rows = read_rows(file, Result)
        except ValueError as error:
            raise ValueError(
                f'{error}. If an older version of this tool wrote it, delete it and run that '
                'command again, which collects the results of finished runs.'
            ) from error
        for row in rows:
            if not isfinite(row.value):
                raise ValueError(f'{file} has the value {row.value} for {row}')
            run = (row.config, row.mode, row.seed)
            if run in results:
                raise ValueError(
                    f'{file} has a second result of {row.config} {row.mode} seed {row.seed}; '
                    'remove one of them, or report the files one by one.'
                )
            results[run] = row
    return [*results.values()]


def write_results(results: Sequence[Result], folder: Path) -> None:
    """Write results.csv, results.md and results.png, and print the tables."""
    write_rows(folder / 'results.csv', results, Result)
    text = report(results)
    write_output(folder / 'results.md', text)
    if results:
        write_figure(folder / 'results.png', draw(results))
    print(f'\n{text}\n{folder / "results.md"}')


def write_page(results: Sequence[Result], page: Path, name: str) -> None:
    """Write the answer and the report between their marks of a page, and the picture beside it.

    Args:
        results: What is reported.
        page: The Markdown page.
        name: Name of the marks of the report, of those of the answer with ``_answer`` at its end,
            and of the picture, ``images/<page>_<name>.png``.

    Raises:
        ValueError: The page lacks the marks.
    """
    text = report(results)
    if results:
        picture = f'images/{page.stem}_{name}.png'
        text += (
            f'![A dot for each run, its lines join a seed; means with their intervals]({picture})\n'
        )
        write_figure(page.parent / picture, draw(results))
    writer, content = 'tools/analysis/compare_paths.py', page.read_text()
    for mark, part in ((f'{name}_answer', answer(results)), (name, text)):
        content = replace_between_marks(content, mark, writer, part)
    write_output(page, content)


@cache
def steps_and_size(config: str, options: tuple[str, ...]) -> tuple[int, Complexity]:
    """Return the steps of a config with options, and the size of its backbone."""
    cfg = TrainingRun(config, Path(), options).read_config()
    steps = cfg.train_cfg.get('max_iters') or cfg.train_cfg.max_epochs
    with torch.device('meta'):
        image = torch.empty(1, 3, *SHAPE)
        return steps, measure_complexity(MODELS.build(cfg.model.backbone), image)


class Job:
    """A run of a config in a mode with a seed.

    Args:
        config: Path of the config.
        mode: Name of the mode.
        seed: Seed of the training.
        folder: Folder of all runs.
        options: Options of the config, with those of the mode.
    """

    def __init__(
        self, config: Path, mode: str, seed: int, folder: Path, options: Sequence[str]
    ) -> None:
        self.config, self.mode, self.seed = config.stem, mode, seed
        self.options = tuple(options)
        work_dir = folder / config.stem / mode / f'seed{seed}'
        settings = [*options, f'randomness.seed={seed}']
        # One thread gives the same numbers on every machine with the same instructions.
        self.run = TrainingRun(
            str(config), work_dir, settings, environment=dict(OMP_NUM_THREADS='1')
        )

    def __str__(self) -> str:
        return f'{self.config} {self.mode} seed {self.seed}'

    def result(self) -> Result | None:
        """Return the result, or None before the test has ended."""
        for name, value in self.run.metrics().items():
            if name in METRICS and isfinite(value):
                label, factor = METRICS[name]
                steps, size = steps_and_size(self.run.config, self.options)
                losses = [row['loss'] for row in read_scalars(self.run.work_dir) if 'loss' in row]
                file = self.run.work_dir / 'seconds'
                return Result(
                    self.config,
                    self.mode,
                    self.seed,
                    steps,
                    label,
                    value=round(factor * value, 3),
                    loss=round(losses[-1], 4) if losses else nan,
                    seconds=float(file.read_text()) if file.exists() else 0.0,
                    params=size.params,
                    macs=size.macs,
                )
        return None

    def train_and_test(self) -> str | None:
        """Run what is left to do. Return what is wrong, if anything."""
        try:
            commands = self.run.commands()
        except RunError as error:
            return str(error)
        begun, whole = time.monotonic(), len(commands) == 2 and not self.run.state()
        if not self.run.run(commands):
            return f'see the end of {self.run.log}'
        if whole:
            seconds = f'{time.monotonic() - begun:.1f}'
            write_output(self.run.work_dir / 'seconds', seconds)
        if self.result() is None:
            return f'the test gave no {" or ".join(METRICS)}; see {self.run.log}'
        return None


def run_jobs(jobs: Sequence[Job], at_once: int) -> list[str]:
    """Run jobs, several at once, and return what went wrong."""
    faults, pool = [], ThreadPoolExecutor(at_once)
    try:
        ended = pool.map(Job.train_and_test, jobs)
        for i, (job, fault) in enumerate(zip(jobs, ended, strict=True), 1):
            print(f'{i}/{len(jobs)} {job}: {fault or "done"}', flush=True)
            if fault:
                faults.append(f'{job}: {fault}')
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        end_all([job.run for job in jobs])
    return faults


def main(argv: Sequence[str] | None = None) -> None:
    """Train, test and compare, or report results again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='*', type=Path, default=CONFIGS, metavar='CONFIG')
    parser.add_argument('--seeds', type=whole_number(1), default=5, help='number of seeds')
    parser.add_argument('--first-seed', type=whole_number(0), default=0)
    parser.add_argument('--modes', nargs='+', choices=MODES, default=MAIN_MODES, metavar='MODE')
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument('--quick', action='store_true', help=f'train for {QUICK_STEPS} steps')
    steps.add_argument(
        '--equal-seconds',
        action='store_true',
        help=f'change the steps of each mode so that its training takes as long as that of '
        f'{BASELINE}; the logs of runs of both, in --work-dir, say how long a step takes',
    )
    parser.add_argument('--jobs', type=whole_number(1), default=2, help='trainings at a time')
    parser.add_argument(
        '--data-root', type=Path, help='folder that has the data sets, such as bccd and camvid'
    )
    parser.add_argument('--options', nargs='+', default=[], metavar='KEY=VALUE')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/compare_paths'))
    parser.add_argument('--dry-run', action='store_true', help='print the commands alone')
    parser.add_argument(
        '--report', type=Path, nargs='+', metavar='CSV', help='report these results again'
    )
    parser.add_argument(
        '--page',
        type=Path,
        help='write the report of one CSV between the marks of a Markdown page that have its name',
    )
    args = parser.parse_args(argv)
    if args.page and len(args.report or ()) != 1:
        parser.error('argument --page: needs --report with one file')
    try:
        if args.page:
            write_page(read_results(args.report[0]), args.page, args.report[0].stem)
            return
        if args.report:
            write_results(read_results(*args.report), args.work_dir)
            return
        names = [config.stem for config in args.configs]
        if repeated := {name for name in names if names.count(name) > 1}:
            parser.error(f'several configs are called {", ".join(sorted(repeated))}')
        if args.dry_run:
            for job in _jobs(args, _known(args.work_dir)):
                print('\n'.join(map(shlex.join, job.run.commands())))
            return
        with locked_folder(args.work_dir):
            _keep_options(args)
            known = _known(args.work_dir)
            _run(_jobs(args, known), known, args)
    except (OSError, ValueError, RunError) as error:
        sys.exit(str(error))


def _known(work_dir: Path) -> list[Result]:
    file = work_dir / 'results.csv'
    return read_results(file) if file.exists() else []


def _keep_options(args: argparse.Namespace) -> None:
    """Note the options that all runs in --work-dir share, which results.csv does not name.

    Raises:
        ValueError: Its runs have other ones.
    """
    file = args.work_dir / 'options'
    now = shlex.join(['--quick'] * args.quick + [*args.options])
    before = file.read_text() if file.exists() else ''
    if now != before and (file.exists() or any(args.work_dir.glob('*/*/seed*'))):
        raise ValueError(
            f'The runs in {args.work_dir} have {before or "no options"}, and these have '
            f'{now or "none"}: give these another --work-dir.'
        )
    write_output(file, now)


def _run(jobs: Sequence[Job], known: Sequence[Result], args: argparse.Namespace) -> None:
    """Train, test, and write the results. End with one message if something went wrong."""
    faults: list[str] = []
    try:
        with signals_interrupt():
            faults = run_jobs(jobs, args.jobs)
    except KeyboardInterrupt:
        sys.exit('Interrupted. Run the same command again to continue.')
    finally:
        write_results([*known, *_results(jobs)], args.work_dir)
    if faults:
        sys.exit('\n'.join([f'{len(faults)} of {len(jobs)} runs failed:', *faults]))


def _jobs(args: argparse.Namespace, known: Sequence[Result]) -> list[Job]:
    """List the runs that the arguments ask for and that are not known."""
    done = {(result.config, result.mode, result.seed) for result in known}
    jobs = []
    for config in args.configs:
        shared = [*_data(config, args.data_root), *args.options]
        modes = {mode: [*MODES[mode], *shared] for mode in args.modes}
        if args.quick:
            steps = _steps(config, shared, lambda _: QUICK_STEPS)
            modes = {mode: [*options, *steps] for mode, options in modes.items()}
        if args.equal_seconds:
            modes = {
                f'{mode}-equal-seconds': [
                    *options,
                    *_equal_seconds(config, mode, options, known, args.work_dir),
                ]
                for mode, options in modes.items()
                if mode != BASELINE
            }
        jobs += [
            Job(config, mode, seed, args.work_dir, options)
            for seed in range(args.first_seed, args.first_seed + args.seeds)
            for mode, options in modes.items()
            if (config.stem, mode, seed) not in done
        ]
    return jobs


def _equal_seconds(
    config: Path, mode: str, options: Sequence[str], known: Sequence[Result], folder: Path
) -> list[str]:
    """Options that give a mode as many steps as take the seconds of the training of the baseline.

    Runs that are known decide it for the seeds that are added.

    Raises:
        ValueError: It is not known how long a step of one of them takes, or the config counts
            epochs.
        RunError: The config cannot be read.
    """
    name = (config.stem, f'{mode}-equal-seconds')
    steps = [result.steps for result in known if (result.config, result.mode) == name]
    if steps:
        return _steps(config, options, lambda _: steps[0])
    baseline, own = (_step_seconds(folder / config.stem / m) for m in (BASELINE, mode))
    return _steps(config, options, lambda old: round(old * baseline / own))


def _steps(config: Path, options: Sequence[str], change: Callable[[int], int]) -> list[str]:
    """Options that change the iterations of a training, and of its schedule.

    Args:
        config: Path of the config.
        options: Other options.
        change: Function from the iterations of the config to those that are wanted.

    Raises:
        ValueError: The config counts epochs.
        RunError: The config cannot be read.
    """
    cfg = TrainingRun(str(config), Path(), options).read_config()
    old = cfg.train_cfg.get('max_iters')
    if old is None:
        raise ValueError(f'{config} counts epochs, not iterations, which are to be changed')
    parts: Mapping[str, Mapping] = {
        'train_cfg': cfg.train_cfg,
        **{f'param_scheduler.{i}': part for i, part in enumerate(cfg.param_scheduler)},
    }
    return [
        f'{name}.{key}={change(old)}'
        for name, part in parts.items()
        for key in ('max_iters', 'val_interval', 'T_max', 'end')
        if part.get(key) == old
    ]


def _step_seconds(runs: Path) -> float:
    """Return the seconds of a step in the runs of a mode.

    The fastest steps that were logged count: other work on the machine can only slow them down.

    Raises:
        ValueError: There is no run.
    """
    rows = [row for run in runs.glob('seed*') for row in read_scalars(run)]
    seconds = [row['time'] for row in rows if 'loss' in row and 'time' in row]
    if not seconds:
        raise ValueError(f'--equal-seconds: {runs} has no log of a training')
    return min(seconds)


def _data(config: Path, data_root: Path | None) -> list[str]:
    """Options that look for the data of a config in another folder, under the same name."""
    if data_root is None:
        return []
    try:
        name = Path(TrainingRun(str(config), Path()).read_config().data_root).name
    except (AttributeError, RunError) as error:
        sys.exit(f'--data-root: {config} has no data_root ({error}).')
    return [f'data_root={data_root / name}/']


def _results(jobs: Iterable[Job]) -> list[Result]:
    found = (job.result() for job in jobs)
    return [result for result in found if result is not None]


if __name__ == '__main__':
    main()
