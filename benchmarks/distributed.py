# SPDX-License-Identifier: Apache-2.0
"""Train on one process and on several, the same images in each step, and compare the losses.

    python benchmarks/distributed.py [--processes 2 4] [--cases segmentor ...]

The processes are torchrun's and run on the CPU, on a few generated images. The loss of each step,
averaged over the processes, is compared with that of one process that takes all images of the step.
The evaluation after the last step counts the images that it was given by all processes.
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

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs'
# Held-out images that no number of processes divides.
IMAGES, HELD_OUT, BATCH, EPOCHS = 8, 7, 4, 4
STEPS = EPOCHS * IMAGES // BATCH
NORM = dict(type='GN', num_groups=4)
TIMEOUT = 600  # seconds, for a job that hangs
LAST_LINES = 60  # shown of a job that failed


# --- What is trained ----------------------------------------------------------------------------
#
# The demo's networks, without what makes processes differ: random augmentation, dropout, and norms
# over the images of a process. With SGD, since Adam would hide gradients of the wrong scale.


def segmentor() -> Config:
    """Its loss is a mean over pixels, and every process has as many."""
    cfg = Config.fromfile(CONFIGS / 'demo/sem-fpn_resnet26-acmix_shapes.py')
    cfg.train_dataloader.dataset.pipeline[3].prob = 0.0
    cfg.model.backbone.norm_eval = True
    cfg.model.decode_head.update(norm_cfg=NORM, dropout_ratio=0.0)
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4)
    cfg.train_cfg.update(max_iters=STEPS, val_interval=STEPS)
    cfg.default_hooks.checkpoint.interval = STEPS
    return cfg


def sharded_segmentor() -> Config:
    """The same with FSDP, where there is more than one process."""
    cfg = segmentor()
    if 'RANK' in os.environ:
        cfg.merge_from_dict(Config.fromfile(CONFIGS / '_base_/strategies/fsdp.py').to_dict())
    return cfg


def mask_rcnn() -> Config:
    """Draws what it trains on at random, and counts it in each process: not the same."""
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
    """Divides its losses by the positives of all processes."""
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
    """Keeps the loss of each step, averaged over the processes, and the images of all of them.

    And how many parameters this process holds after a step.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.images: list[list[str]] = []
        self.parameters = 0

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Called by the runner."""
        loss = outputs['loss'].detach().double()
        all_reduce(loss, op='mean')
        self.losses.append(loss.item())
        images = all_gather_object([Path(s.img_path).stem for s in data_batch['data_samples']])
        self.images.append(sorted(chain.from_iterable(images)))
        self.parameters = sum(parameter.numel() for parameter in runner.model.parameters())


class SeenImages(BaseMetric):
    """Keeps the images that an evaluation has gathered from all processes, in the first of them."""

    gathered: list[str] = []

    def process(self, data_batch: Any, data_samples: Iterable[dict]) -> None:
        """Called by the evaluator."""
        self.results += [Path(sample['img_path']).stem for sample in data_samples]

    def compute_metrics(self, results: list[str]) -> dict:
        """Called by the evaluator, with the results of all processes."""
        self.gathered = sorted(results)
        return {}


def train(case: str, folder: Path) -> dict[str, Any]:
    """Train and evaluate in this process, torchrun's or the only one.

    Returns:
        dict: ``losses`` and ``images`` of every step, ``parameters`` of this process, and the
        images that were ``evaluated``.
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
    # mmengine formats the config, again and again, for longer than these steps take.
    runner = build_runner(Config(cfg.to_dict(), format_python_code=False))
    steps, seen = Steps(), SeenImages()
    runner.register_hook(steps)
    runner.val_loop.evaluator.metrics.append(seen)
    runner.train()
    return dict(vars(steps), evaluated=seen.gathered)


# --- Comparison ---------------------------------------------------------------------------------


@dataclass
class Comparison:
    """One case on several processes, beside the same case on one.

    Args:
        case: A key of ``CASES``.
        processes: Number of processes.
        first_loss: Loss of one process in the first step.
        last_loss: Loss of one process in the last step.
        deviation: The largest difference between the losses of a step.
        parameters: Fraction of the model's parameters that the first process holds.
        same_images: Whether every step saw the same images.
        evaluated: Number of images that the evaluation gathered.
        evaluated_once: Whether they are the held-out images, each once.
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
    """Train in new processes; on a failure, or after minutes, end with what they printed."""
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
    """Train on several processes, and on one.

    Args:
        jobs: Keys of ``CASES``, by the number of processes, which is a divisor of ``BATCH``.
        folder: For data and logs.
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


def main(argv: list[str] | None = None) -> None:
    """Compare, or be a process of a comparison."""
    parser = argparse.ArgumentParser(description='Train on one process and on several, and compare')
    numbers = [number for number in range(2, BATCH + 1) if BATCH % number == 0]
    parser.add_argument('--processes', nargs='+', type=int, choices=numbers, default=numbers)
    parser.add_argument('--cases', nargs='+', choices=CASES, default=list(CASES))
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
    print('| case | processes x images | loss, first and last step | largest deviation '
          '| same images in each step | parameters in a process | evaluated |\n'
          '|---|---|---|---|---|---|---|')  # fmt: skip
    for c in comparisons:
        once = 'each once' if c.evaluated_once else 'not each once'
        print(f'| {c.case} | {c.processes} x {BATCH // c.processes} '
              f'| {c.first_loss:.3f}, {c.last_loss:.3f} | {c.deviation:.1e} '
              f'| {"yes" if c.same_images else "no"} | {c.parameters:.0%} '
              f'| {c.evaluated} of {HELD_OUT}, {once} |')  # fmt: skip


if __name__ == '__main__':
    main()
