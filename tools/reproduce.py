# SPDX-License-Identifier: Apache-2.0
"""Train and test the models of the metafiles, and put their results beside the published ones.

    python tools/reproduce.py [--only detection] [--gpus 8] [--dry-run] ['retinanet_*' ...]

The models are those of model-index.yml; --only and patterns of their names select some of them.
Each model is trained and tested in a folder of its own in --work-dir, with the output in
reproduce.log. To continue after an interruption, run the same command again: a model resumes from
its last checkpoint, and models that are finished are skipped. If a model fails, the others still
run. At the end, results.md and results.csv in --work-dir contain the metrics of all finished
models.

--gpus is the number of GPUs on this machine. They share the batch of the recipe, so that its
learning rate remains right.
"""

import argparse
import csv
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from mmengine.config import Config
from mmengine.fileio import load
from mmengine.runner import find_latest_checkpoint

from acmix_mm.runtime.markdown import table

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
COLUMNS = ('model', 'state', 'metric', 'ours', 'published', 'source')


@dataclass(frozen=True)
class Model:
    """A model of a metafile.

    Args:
        name: Name of the model, also used as the folder name.
        config: Path of its config.
        task: Task of the model, one of the values of ``TASKS``.
        published: Published metrics of the model by their names in metafiles.
        source: Address of the publication; empty if nothing was published.
    """

    name: str
    config: str
    task: str
    published: dict[str, float]
    source: str


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
            published = entry.get('Published', {})
            models.append(
                Model(
                    entry['Name'],
                    os.path.relpath(index.parent / entry['Config']),
                    TASKS[data],
                    published.get('Metrics', {}),
                    published.get('Source', ''),
                )
            )
    return models


class Run:
    """The training and the test of a model.

    Args:
        model: The model.
        work_dir: Folder for checkpoints and logs. What it contains decides what is left to do.
        gpus: Number of GPUs.
    """

    def __init__(self, model: Model, work_dir: Path, gpus: int) -> None:
        self.model = model
        self.work_dir = work_dir
        self.gpus = gpus
        self.log = work_dir / 'reproduce.log'

    def state(self) -> str:
        """Return ``'done'`` after the test, else the last checkpoint's name or an empty string."""
        if self.metrics():
            return 'done'
        latest = find_latest_checkpoint(str(self.work_dir)) if self.work_dir.exists() else None
        return Path(latest).stem if latest else ''

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the test by their names in metafiles; empty before the test."""
        # mmengine writes the metrics of a test to <time>/<time>.json.
        logs = sorted(self.work_dir.glob('test/*/[0-9]*.json'))
        logged = json.loads(logs[-1].read_text()) if logs else {}
        return {
            name: round(logged[key] * factor, 2)
            for key, (name, factor) in METRICS.items()
            if key in logged
        }

    def commands(self) -> list[list[str]]:
        """Return the commands that are left to be run.

        Raises:
            SystemExit: The config cannot be read, or the GPUs cannot share its batch.
        """
        state = self.state()
        if state == 'done':
            return []
        try:
            cfg = Config.fromfile(self.model.config, import_custom_modules=False)
        except ModuleNotFoundError as error:  # the config inherits from a library's configs
            sys.exit(f'{self.model.config} cannot be read: {error}.')
        loop = cfg.train_cfg
        last = f'epoch_{loop.max_epochs}' if 'max_epochs' in loop else f'iter_{loop.max_iters}'
        options = ['--work-dir', str(self.work_dir)]
        train = self._tool('train', [self.model.config], options)
        if state:
            train.append('--resume')
        batch_size = self._batch_size(cfg)
        if batch_size != cfg.train_dataloader.batch_size:
            train += ['--cfg-options', f'train_dataloader.batch_size={batch_size}']
        options = ['--work-dir', str(self.work_dir / 'test')]
        checkpoint = str(self.work_dir / f'{last}.pth')
        test = self._tool('test', [self.model.config, checkpoint], options)
        return [test] if state == last else [train, test]

    def run(self, commands: list[list[str]]) -> bool:
        """Run commands until one fails. Return True if none failed."""
        self.work_dir.mkdir(parents=True, exist_ok=True)
        # Put the Python that runs this tool first, because the scripts call `python`.
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get('PATH', '')])
        environment = os.environ | dict(PATH=path)
        with self.log.open('a') as log:
            for command in commands:
                print(f'$ {shlex.join(command)}', file=log, flush=True)
                process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
                try:
                    code = process.wait()
                except KeyboardInterrupt:
                    process.wait()  # it was interrupted too, and has to end its own processes
                    raise
                if code:
                    return False
        return True

    def _tool(self, name: str, files: list[str], options: list[str]) -> list[str]:
        tools = os.path.relpath(ROOT / 'tools')
        if self.gpus > 1:
            return ['bash', f'{tools}/dist_{name}.sh', *files, str(self.gpus), *options]
        return ['python', f'{tools}/{name}.py', *files, *options]

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
        model, ours = run.model, run.metrics()
        for metric in dict.fromkeys([*ours, *model.published]) or ['']:
            figures = (ours.get(metric, ''), model.published.get(metric, ''))
            rows.append([model.name, run.state(), metric, *map(str, figures), model.source])
    return rows


def write_results(runs: list[Run], work_dir: Path) -> None:
    """Write results.md and results.csv, and print the former."""
    rows = result_rows(runs)
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / 'results.csv').open('w', newline='') as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    text = table(COLUMNS, rows)
    text += '\nPublished figures are those of the metafiles; for others see the paper.\n'
    (work_dir / 'results.md').write_text(text)
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
    parser.add_argument('--gpus', type=int, default=1, help='number of GPUs (default: 1)')
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/reproduce'),
        help='folder for all runs (default: %(default)s)',
    )
    parser.add_argument(
        '--index',
        type=Path,
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
    plan = [(run, run.commands()) for run in chosen]
    if args.dry_run:
        for command in (command for _, commands in plan for command in commands):
            print(shlex.join(command))
        return
    failed = []
    try:
        for i, (run, commands) in enumerate(plan, 1):
            print(
                f'{i}/{len(plan)} {run.model.name}: {run.log if commands else "done"}', flush=True
            )
            if not run.run(commands):
                failed.append(run)
    except KeyboardInterrupt:
        sys.exit('Interrupted. Run the same command again to continue.')
    finally:
        write_results(runs, args.work_dir)
    if failed:
        logs = '\n'.join(f'  {run.model.name}: {run.log}' for run in failed)
        sys.exit(f'{len(failed)} of {len(plan)} models failed; see the end of\n{logs}')


if __name__ == '__main__':
    main()
