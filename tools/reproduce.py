# SPDX-License-Identifier: Apache-2.0
"""Train and test the models of the metafiles, and put their results beside the published ones.

    python tools/reproduce.py [--only detection] [--gpus 8] [--dry-run] ['retinanet_*' ...]

The models are those of model-index.yml; --only and patterns of their names select some of them.
Each model is trained and tested in a folder of its own in --work-dir, with the output in
reproduce.log. To continue after an interruption, run the same command again: a model resumes from
its newest checkpoint, and models that are finished are skipped. If a model fails, or its config
cannot be read, the others still run. What ends this tool (Ctrl-C, kill, a closed terminal) also
ends the training that it started. At the end, results.md and results.csv in --work-dir contain the
metrics of all finished models.

--gpus is the number of GPUs on this machine. They share the batch of the recipe, so that its
learning rate remains right.
"""

import argparse
import csv
import os
import re
import shlex
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from io import StringIO
from pathlib import Path

from mmengine.config import Config
from mmengine.fileio import load

from acmix_mm.atomic_write import write_atomically
from acmix_mm.preflight.arguments import existing_file, whole_number
from acmix_mm.runtime.markdown import table
from acmix_mm.runtime.training_run import RunError, TrainingRun, signals_interrupt

ROOT = Path(__file__).resolve().parents[1]
TASKS = {
    'COCO': 'detection',
    'ADE20K': 'segmentation',
    'Cityscapes': 'segmentation',
    'PASCAL VOC 2012 + Aug': 'segmentation',
    'ImageNet-1k': 'imagenet',
}
# Metrics by their names in mmengine's logs: their names in metafiles, and the factor that turns a
# logged value into a value of the metafiles.
METRICS = {
    'coco/bbox_mAP': ('box AP', 100),
    'coco/segm_mAP': ('mask AP', 100),
    'mIoU': ('mIoU', 1),
    'accuracy/top1': ('Top 1 Accuracy', 1),
}
COLUMNS = (
    'model', 'state', 'metric', 'ours', 'published', 'source', 'plain backbone',
    'its source',
)  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """Figures that others published.

    Args:
        metrics: Metrics by their names in metafiles.
        source: Address of the publication; empty if nothing was published.
    """

    metrics: dict[str, float]
    source: str

    @classmethod
    def of(cls, entry: dict) -> 'Figures':
        """Read them from the part of a metafile, which is empty if there are none."""
        return cls(entry.get('Metrics', {}), entry.get('Source', ''))


@dataclass(frozen=True)
class Model:
    """A model of a metafile.

    Args:
        name: Name of the model, also used as the folder name.
        config: Path of its config.
        task: Task of the model, one of the values of ``TASKS``.
        published: Those of the model.
        plain: Those of the same model with the plain backbone.
    """

    name: str
    config: str
    task: str
    published: Figures
    plain: Figures


def read_models(index: Path) -> list[Model]:
    """Read the models of all metafiles that an index file lists.

    Args:
        index: Path of the index file, such as ``model-index.yml``.

    Raises:
        SystemExit: A model is trained on a data set whose task is unknown.
    """
    models = []
    for metafile in load(index)['Import']:
        for entry in load(index.parent / metafile)['Models']:
            data = entry['Metadata']['Training Data']
            if data not in TASKS:
                sys.exit(
                    f'{metafile}: the Training Data of {entry["Name"]} is {data}; it must be one '
                    f'of {", ".join(TASKS)}.'
                )
            models.append(
                Model(
                    entry['Name'],
                    os.path.relpath(index.parent / entry['Config']),
                    TASKS[data],
                    Figures.of(entry.get('Published', {})),
                    Figures.of(entry.get('Plain Backbone', {})),
                )
            )
    return models


class Run(TrainingRun):
    """The training and the test of a model.

    Args:
        model: The model.
        work_dir: Folder for checkpoints and logs. What it contains decides what is left to do.
        gpus: Number of GPUs.
    """

    def __init__(self, model: Model, work_dir: Path, gpus: int) -> None:
        super().__init__(model.config, work_dir, gpus=gpus)
        self.model = model
        self.log = work_dir / 'reproduce.log'

    def results(self) -> dict[str, float]:
        """Return the metrics of the test by their names in metafiles; empty before the test."""
        return {
            METRICS[key][0]: round(value * METRICS[key][1], 2)
            for key, value in self.metrics().items()
            if key in METRICS
        }

    def options_for(self, cfg: Config) -> list[str]:
        """Return the batch size of each GPU, if it is not that of the config."""
        batch_size = self._batch_size(cfg)
        if batch_size == cfg.train_dataloader.batch_size:
            return []
        return [f'train_dataloader.batch_size={batch_size}']

    def _batch_size(self, cfg: Config) -> int:
        """Return the batch size of each GPU at which all GPUs share the batch of the recipe."""
        recipe = re.search(r'_(\d+)xb(\d+)', self.model.name)  # GPUs x images on each
        if recipe:
            total = int(recipe[1]) * int(recipe[2])
        elif 'auto_scale_lr' in cfg:
            total = cfg.auto_scale_lr.base_batch_size
        else:
            return cfg.train_dataloader.batch_size
        if total % self.gpus:
            sys.exit(
                f'--gpus {self.gpus}: {self.model.name} trains with steps of {total} images; use a '
                'number of GPUs that divides them.'
            )
        return total // self.gpus


def result_rows(runs: list[Run]) -> list[list[str]]:
    """Return a row for each metric, measured or published, of each run."""
    rows = []
    for run in runs:
        model, ours = run.model, run.results()
        try:
            state = run.state()
        except RunError:
            state = 'failed'
        others = (model.published, model.plain)
        names = [*ours, *(name for figures in others for name in figures.metrics)]
        for metric in dict.fromkeys(names) or ['']:
            row = [model.name, state, metric, str(ours.get(metric, ''))]
            for figures in others:
                row += [str(figures.metrics.get(metric, '')), figures.source]
            rows.append(row)
    return rows


def write_results(runs: list[Run], work_dir: Path) -> None:
    """Write results.md and results.csv, and print the former."""
    rows = result_rows(runs)
    sheet = StringIO()
    csv.writer(sheet).writerows([COLUMNS, *rows])
    write_atomically(work_dir / 'results.csv', sheet.getvalue())
    text = table(COLUMNS, rows)
    text += '\nPublished figures are those of the metafiles; for others see the paper.\n'
    write_atomically(work_dir / 'results.md', text)
    print(f'\n{text}\n{work_dir / "results.md"}\n{work_dir / "results.csv"}')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'names', nargs='*', metavar='PATTERN', help='names of models; * and ? are wildcards'
    )
    parser.add_argument(
        '--only', choices=sorted(set(TASKS.values())), help='run the models of one task'
    )
    parser.add_argument(
        '--dry-run', action='store_true', help='print the commands without running them'
    )
    parser.add_argument(
        '--gpus', type=whole_number(1), default=1, help='number of GPUs (default: 1)'
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/reproduce'),
        help='folder for all runs (default: %(default)s)',
    )
    parser.add_argument(
        '--index',
        type=existing_file,
        default=ROOT / 'model-index.yml',
        help="file that lists the metafiles (default: the repository's model-index.yml)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the commands that are left to be run, or print them."""
    args = parse_args(argv)
    runs = [Run(model, args.work_dir / model.name, args.gpus) for model in read_models(args.index)]
    chosen = [
        run
        for run in runs
        if args.only in (None, run.model.task)
        if not args.names or any(fnmatch(run.model.name, pattern) for pattern in args.names)
    ]
    if not chosen:
        options = [f'--only {args.only}'] if args.only else []
        sys.exit(f'No model of {args.index} matches {" ".join([*options, *args.names])}.')
    plan, failed = [], []
    for run in chosen:
        try:
            plan.append((run, run.commands()))
        except RunError as error:
            print(f'{run.model.name}: {error}.', file=sys.stderr)
            failed.append(f'{run.model.name}: {error}')
    if args.dry_run:
        for command in (command for _, commands in plan for command in commands):
            print(shlex.join(command))
    else:
        try:
            failed += run_all(plan, runs, args.work_dir)
        except OSError as error:  # a folder or a file that cannot be written
            sys.exit(str(error))
    if failed:
        reasons = ''.join(f'\n  {reason}' for reason in failed)
        sys.exit(f'{len(failed)} of {len(chosen)} models failed:{reasons}')


def run_all(plan: list[tuple[Run, list[list[str]]]], runs: list[Run], work_dir: Path) -> list[str]:
    """Run the commands of each model, and write the results. Return what failed, with its log."""
    failed = []
    try:
        with signals_interrupt():
            for i, (run, commands) in enumerate(plan, 1):
                where = run.log if commands else 'done'
                print(f'{i}/{len(plan)} {run.model.name}: {where}', flush=True)
                if not run.run(commands):
                    failed.append(f'{run.model.name}: see the end of {run.log}')
    except KeyboardInterrupt as error:
        sys.exit(f'Ended by {str(error) or "SIGINT"}. Run the same command again to continue.')
    finally:
        write_results(runs, work_dir)
    return failed


if __name__ == '__main__':
    main()
