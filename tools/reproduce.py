# SPDX-License-Identifier: Apache-2.0
"""Train and test the models of the metafiles, and put their results beside the published ones.

    python tools/reproduce.py [--only detection] [--gpus 8] [--dry-run] ['retinanet_*' ...]

Models are those of model-index.yml, or of them those that --only and the patterns choose. Each is
trained and tested in a folder of its own below --work-dir, with its output in reproduce.log there.
One that was interrupted goes on from its last checkpoint, and one that is done is passed over: so
the same command takes up work where it stopped. One that fails does not stop the others. In the
end, results.md and results.csv in --work-dir have the metrics of all models that are done.

--gpus is the number of GPUs of this machine. Batches are divided among them such that each step
sees as many images as the recipe says; the learning rates are meant for these.
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

import acmix_mm  # noqa: F401  makes mmengine find the configs of mmseg

ROOT = Path(__file__).resolve().parents[1]
TASKS = {
    'COCO': 'detection',
    'ADE20K': 'segmentation',
    'Cityscapes': 'segmentation',
    'PASCAL VOC 2012 + Aug': 'segmentation',
    'ImageNet-1k': 'imagenet',
}
# What evaluators call a metric, what metafiles call it, and what one has to be multiplied by.
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
        task: One of the values of TASKS.
        published: Published metrics of the model, under the names of the metafiles.
        source: Where they were published.
    """

    name: str
    config: str
    task: str
    published: dict[str, float]
    source: str


def read_models(index: Path) -> list[Model]:
    """The models of all metafiles that an index names."""
    models = []
    for metafile in load(index)['Import']:
        for entry in load(index.parent / metafile)['Models']:
            data = entry['Metadata']['Training Data']
            if data not in TASKS:
                sys.exit(
                    f'{metafile}: the Training Data of {entry["Name"]} is {data}, which is none of '
                    f'{", ".join(TASKS)}.'
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
    """The training and test of a model, and what its folder has of them.

    Args:
        model: The model.
        work_dir: The folder.
        gpus: Number of GPUs.
    """

    def __init__(self, model: Model, work_dir: Path, gpus: int) -> None:
        self.model = model
        self.work_dir = work_dir
        self.gpus = gpus
        self.log = work_dir / 'reproduce.log'

    def state(self) -> str:
        """How far it has come: the last checkpoint's name, 'done' after the test."""
        if self.metrics():
            return 'done'
        latest = find_latest_checkpoint(str(self.work_dir)) if self.work_dir.exists() else None
        return Path(latest).stem if latest else ''

    def metrics(self) -> dict[str, float]:
        """The metrics of the test, by the names of metafiles; empty before it."""
        # mmengine writes them to <time>/<time>.json.
        logs = sorted(self.work_dir.glob('test/*/[0-9]*.json'))
        logged = json.loads(logs[-1].read_text()) if logs else {}
        return {
            name: round(logged[key] * factor, 2)
            for key, (name, factor) in METRICS.items()
            if key in logged
        }

    def commands(self) -> list[list[str]]:
        """What is left to be run."""
        state = self.state()
        if state == 'done':
            return []
        try:
            cfg = Config.fromfile(self.model.config, import_custom_modules=False)
        except ModuleNotFoundError as error:  # of a library whose configs it inherits
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
        """Run commands until one fails, and tell whether none did."""
        self.work_dir.mkdir(parents=True, exist_ok=True)
        # The Python that runs this goes before others: the scripts look for one.
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get('PATH', '')])
        environment = os.environ | dict(PATH=path)
        with self.log.open('a') as log:
            for command in commands:
                print(f'$ {shlex.join(command)}', file=log, flush=True)
                process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
                try:
                    code = process.wait()
                except KeyboardInterrupt:
                    process.wait()  # Ctrl-C reaches it, too, and it has processes of its own to end
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
        """Images of one GPU, such that all together see what the recipe says."""
        name = re.search(r'_(\d+)xb(\d+)', self.model.name)  # GPUs and images of each
        if name:
            total = int(name[1]) * int(name[2])
        elif 'auto_scale_lr' in cfg:
            total = cfg.auto_scale_lr.base_batch_size
        else:
            return cfg.train_dataloader.batch_size
        if total % self.gpus:
            sys.exit(
                f'--gpus {self.gpus}: {self.model.name} is for steps of {total} images, which '
                'cannot be divided among them.'
            )
        return total // self.gpus


def table(runs: list[Run]) -> list[dict[str, str]]:
    """One line for each metric of each run, measured or published."""
    lines = []
    for run in runs:
        model, ours = run.model, run.metrics()
        for metric in [*ours, *(name for name in model.published if name not in ours)] or ['']:
            cells = (model.name, run.state(), metric, ours.get(metric, ''),
                     model.published.get(metric, ''), model.source)  # fmt: skip
            lines.append(dict(zip(COLUMNS, map(str, cells), strict=True)))
    return lines


def write_table(runs: list[Run], work_dir: Path) -> None:
    """Write results.md and results.csv."""
    lines = table(runs)
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / 'results.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(lines)
    rows = [COLUMNS, ['---'] * len(COLUMNS), *(line.values() for line in lines)]
    text = ''.join(f'| {" | ".join(row)} |\n' for row in rows)
    text += '\nPublished figures stand where the metafiles have them; for others see the paper.\n'
    (work_dir / 'results.md').write_text(text)
    print(f'\n{text}\n{work_dir / "results.md"}\n{work_dir / "results.csv"}')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Which models, and how."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('names', nargs='*', metavar='PATTERN', help='names of models, with * and ?')
    parser.add_argument('--only', choices=sorted(set(TASKS.values())), help='models of one task')
    parser.add_argument('--dry-run', action='store_true', help='print the commands, run nothing')
    parser.add_argument('--gpus', type=int, default=1, help='GPUs of this machine (default: 1)')
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/reproduce'),
        help='folder of all runs (default: %(default)s)',
    )
    parser.add_argument(
        '--index',
        type=Path,
        default=ROOT / 'model-index.yml',
        help="file that names the metafiles (default: the repository's)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run, or print, what is left to be run."""
    args = parse_args(argv)
    runs = [Run(model, args.work_dir / model.name, args.gpus) for model in read_models(args.index)]
    chosen = [
        run
        for run in runs
        if args.only in (None, run.model.task)
        if not args.names or any(fnmatch(run.model.name, pattern) for pattern in args.names)
    ]
    if not chosen:
        sys.exit(f'No model of {args.index} is {" or ".join(args.names) or args.only}.')
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
        sys.exit('Stopped. The same command goes on from here.')
    finally:
        write_table(runs, args.work_dir)
    if failed:
        logs = '\n'.join(f'  {run.model.name}: {run.log}' for run in failed)
        sys.exit(f'{len(failed)} of {len(plan)} failed; see the end of\n{logs}')


if __name__ == '__main__':
    main()
