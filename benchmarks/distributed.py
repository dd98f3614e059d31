# SPDX-License-Identifier: Apache-2.0
"""Train on one process and on several, with the same images in each step, and compare the losses.

    python benchmarks/distributed.py [--processes 2 4] [--cases segmentor ...]

The processes are started by torchrun and train on the CPU, on a few generated images. The loss of
each step, averaged over the processes, is compared with that of one process that takes all images
of the step. The evaluation after the last step counts the images that all processes contribute.
"""

import argparse
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, all_reduce, get_world_size, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.hub import get_config

from acmix_mm.runtime import argument_parser, build_runner, load_config
from acmix_mm.runtime.markdown import table

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs'
IMAGES, BATCH, EPOCHS = 8, 4, 4
STEPS = EPOCHS * IMAGES // BATCH
HELD_OUT = 7  # images of the evaluation; no number of processes divides it
NORM = dict(type='GN', num_groups=4)
TIMEOUT = 600  # seconds after which a job counts as hung
LAST_LINES = 60  # number of lines that are shown of a failed job's output


# --- What is trained ----------------------------------------------------------------------------
#
# The networks of the demo, without what makes processes differ: random augmentation, dropout, and
# norms over the images of a process. They are trained by SGD, because Adam would hide gradients of
# a wrong scale.


def segmentor() -> Config:
    """Return a config whose loss is a mean over pixels; all processes have equally many pixels."""
    cfg = Config.fromfile(CONFIGS / 'demo/sem-fpn_resnet26-acmix_shapes.py')
    cfg.train_dataloader.dataset.pipeline[3].prob = 0.0
    cfg.model.backbone.norm_eval = True
    cfg.model.decode_head.update(norm_cfg=NORM, dropout_ratio=0.0)
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4)
    cfg.train_cfg.update(max_iters=STEPS, val_interval=STEPS)
    cfg.default_hooks.checkpoint.interval = STEPS
    return cfg


def sharded_segmentor() -> Config:
    """Return the config of the segmentor, with FSDP if there is more than one process."""
    cfg = segmentor()
    if 'RANK' in os.environ:
        cfg.merge_from_dict(Config.fromfile(CONFIGS / '_base_/strategies/fsdp.py').to_dict())
    return cfg


def mask_rcnn() -> Config:
    """Return a config that samples its training examples at random and counts them per process.

    Its losses depend on the number of processes.
    """
    cfg = Config.fromfile(CONFIGS / 'demo/mask-rcnn_resnet26-acmix_fpn_shapes.py')
    cfg.train_dataloader.dataset.pipeline[3].prob = 0.0
    cfg.model.backbone.norm_eval = True
    cfg.model.neck.norm_cfg = NORM
    cfg.model.roi_head.bbox_head.norm_cfg = NORM
    cfg.model.roi_head.mask_head.norm_cfg = NORM
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4)
    cfg.param_scheduler = []
    cfg.train_cfg.update(max_epochs=EPOCHS, val_interval=EPOCHS)
    return cfg


def fcos() -> Config:
    """Return a config whose losses are divided by the positive examples of all processes."""
    cfg = mask_rcnn()
    cfg.model = get_config('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py').model
    cfg.model.backbone = dict(type='ACmixResNet', depth=26, base_channels=16)
    cfg.model.neck.update(in_channels=[64, 128, 256, 512], out_channels=32)
    cfg.model.bbox_head.update(
        num_classes=4, in_channels=32, feat_channels=32, stacked_convs=1, norm_cfg=NORM
    )
    cfg.val_evaluator.metric = 'bbox'
    return cfg


CASES: dict[str, Callable[[], Config]] = {
    'segmentor': segmentor,
    'sharded-segmentor': sharded_segmentor,
    'fcos': fcos,
    'mask-rcnn': mask_rcnn,
}


# --- A process ----------------------------------------------------------------------------------


class Steps(Hook):
    """Records the steps of a training.

    Attributes:
        losses: Loss of each step, averaged over the processes.
        images: Names of the images of all processes in each step.
        parameters: Number of parameters that this process holds after a step.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.images: list[list[str]] = []
        self.parameters = 0

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Record a step; called by the runner."""
        loss = outputs['loss'].detach().double()
        all_reduce(loss, op='mean')
        self.losses.append(loss.item())
        images = all_gather_object([Path(s.img_path).stem for s in data_batch['data_samples']])
        self.images.append(sorted(chain.from_iterable(images)))
        self.parameters = sum(parameter.numel() for parameter in runner.model.parameters())


class SeenImages(BaseMetric):
    """Records the images of an evaluation.

    Attributes:
        gathered: Names of the images of all processes; filled in the first process only.
    """

    gathered: list[str] = []

    def process(self, data_batch: Any, data_samples: Iterable[dict]) -> None:
        """Record the images of a batch; called by the evaluator."""
        self.results += [Path(sample['img_path']).stem for sample in data_samples]

    def compute_metrics(self, results: list[str]) -> dict:
        """Record the images of all processes; called by the evaluator in the first process."""
        self.gathered = sorted(results)
        return {}


def train(case: str, folder: Path) -> dict[str, Any]:
    """Train and evaluate in this process, which may be one of several.

    Args:
        case: A key of ``CASES``.
        folder: Folder with the data, in which configs and logs are written.

    Returns:
        The attributes of :class:`Steps`, and the names of the images that were ``evaluated``.
    """
    processes, rank = int(os.environ.get('WORLD_SIZE', 1)), os.environ.get('RANK')
    name = f'{case}-{processes}'
    cfg = CASES[case]()
    cfg.experiment_name = name
    cfg.train_dataloader.batch_size = BATCH // processes
    cfg.val_dataloader.batch_size = 1
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    config = folder / f'{name}-{rank}.py'
    cfg.dump(config)
    args = [str(config), '--work-dir', str(folder / name)]
    args += ['--launcher', 'pytorch' if rank else 'none']
    args += ['--cfg-options', f'data_root={folder / "shapes"}', 'env_cfg.dist_cfg.timeout=60']
    cfg = load_config(argument_parser('').parse_args(args))
    # Without this argument, mmengine formats the config several times, which takes longer than the
    # training itself.
    runner = build_runner(Config(cfg.to_dict(), format_python_code=False))
    steps, seen = Steps(), SeenImages()
    runner.register_hook(steps)
    runner.val_loop.evaluator.metrics.append(seen)
    runner.train()
    return dict(vars(steps), evaluated=seen.gathered)


# --- Comparison ---------------------------------------------------------------------------------


@dataclass
class Comparison:
    """A case on several processes, compared with the same case on one process.

    Attributes:
        case: A key of ``CASES``.
        processes: Number of processes.
        first_loss: Loss of one process in the first step.
        last_loss: Loss of one process in the last step.
        deviation: Largest difference between the losses of a step on one and on several processes.
        parameters: Fraction of the model's parameters that the first process holds.
        same_images: Whether every step saw the same images.
        evaluated: Number of images that the evaluation gathered.
        evaluated_once: Whether they are exactly the held-out images, without duplicates.
    """

    case: str
    processes: int
    first_loss: float
    last_loss: float
    deviation: float
    parameters: float
    same_images: bool
    evaluated: int
    evaluated_once: bool


def run(processes: int, cases: Sequence[str], folder: Path) -> dict[str, dict]:
    """Train cases in new processes.

    Args:
        processes: Number of processes.
        cases: Keys of ``CASES``.
        folder: Folder with the data, in which configs and logs are written.

    Returns:
        What :func:`train` returns in the first process, for each case.

    Raises:
        SystemExit: The training failed; the message is the end of its output.
        subprocess.TimeoutExpired: The training took longer than ``TIMEOUT``.
    """
    torchrun = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={processes}']
    log = folder / f'{processes}.log'
    command = [sys.executable, *(torchrun if processes > 1 else []), __file__]
    command += ['--job', str(folder), '--cases', *cases]
    with log.open('w') as output:
        result = subprocess.run(
            command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, timeout=TIMEOUT
        )
    if result.returncode:
        sys.exit('\n'.join(log.read_text().splitlines()[-LAST_LINES:]))
    return json.loads((folder / f'{processes}.json').read_text())


def compare(jobs: Mapping[int, Sequence[str]], folder: Path) -> list[Comparison]:
    """Train on several processes, and compare with a training on one process.

    Args:
        jobs: Keys of ``CASES`` for each number of processes, which must be a divisor of ``BATCH``.
        folder: Folder for data and logs.
    """
    shapes = runpy.run_path(str(ROOT / 'tools/dataset/make_shapes.py'))
    options = dict(out=folder / 'shapes', train=IMAGES, val=HELD_OUT)
    shapes['main']([str(x) for name, value in options.items() for x in (f'--{name}', value)])
    held_out = sorted(path.stem for path in (folder / 'shapes/val').iterdir())
    alone = run(1, list(dict.fromkeys(chain.from_iterable(jobs.values()))), folder)
    comparisons = []
    for processes, cases in jobs.items():
        for case, job in run(processes, cases, folder).items():
            losses = list(zip(alone[case]['losses'], job['losses'], strict=True))
            comparisons.append(
                Comparison(
                    case=case,
                    processes=processes,
                    first_loss=losses[0][0],
                    last_loss=losses[-1][0],
                    deviation=max(abs(one - several) for one, several in losses),
                    parameters=job['parameters'] / alone[case]['parameters'],
                    same_images=alone[case]['images'] == job['images'],
                    evaluated=len(job['evaluated']),
                    evaluated_once=job['evaluated'] == held_out,
                )
            )
    return comparisons


HEADER = (
    'case',
    'processes x images',
    'loss, first and last step',
    'largest deviation',
    'same images in each step',
    'parameters in a process',
    'evaluated',
)


def row(comparison: Comparison) -> list[str]:
    """Return the cells of a comparison in the table."""
    c = comparison
    once = 'each once' if c.evaluated_once else 'not each once'
    return [
        c.case,
        f'{c.processes} x {BATCH // c.processes}',
        f'{c.first_loss:.3f}, {c.last_loss:.3f}',
        f'{c.deviation:.1e}',
        'yes' if c.same_images else 'no',
        f'{c.parameters:.0%}',
        f'{c.evaluated} of {HELD_OUT}, {once}',
    ]


def main(argv: list[str] | None = None) -> None:
    """Print a comparison, or run one of its processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers = [number for number in range(2, BATCH + 1) if BATCH % number == 0]
    parser.add_argument(
        '--processes',
        nargs='+',
        type=int,
        choices=numbers,
        default=numbers,
        help='numbers of processes (default: all)',
    )
    parser.add_argument(
        '--cases', nargs='+', choices=CASES, default=[*CASES], help='what to train (default: all)'
    )
    # For the processes of a comparison.
    parser.add_argument('--job', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.job:
        torch.set_num_threads(1)
        results = {case: train(case, args.job) for case in args.cases}
        if is_main_process():
            (args.job / f'{get_world_size()}.json').write_text(json.dumps(results))
        return
    with TemporaryDirectory() as folder:
        comparisons = compare(dict.fromkeys(args.processes, args.cases), Path(folder))
    print(table(HEADER, [row(comparison) for comparison in comparisons]))


if __name__ == '__main__':
    main()
