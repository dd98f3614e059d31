# SPDX-License-Identifier: Apache-2.0
"""Measure how many images per second a trained detector handles one by one on a CPU.

    python -m benchmarks.inference IMAGE [--config CONFIG] [--checkpoint FILE]

The backbone and the neck run in three ways: eagerly, compiled by ``torch.compile``, and as an ONNX
file in onnxruntime, which tools/export.py writes. The first row is what they take alone. The second
row is a whole call of mmdet, from the file of an image to boxes and masks, in which the pipeline,
the heads and NMS are the same in all three columns. The default detector is that of ``make demo``.

The three run in turn in one process. A figure is one over the median time.
"""

import argparse
import runpy
import statistics
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mmcv
import torch
from mmdet.apis import inference_detector, init_detector
from torch import Tensor, nn

from acmix_mm.preflight.arguments import whole_number
from acmix_mm.runtime import patch_mmengine, require_fit
from acmix_mm.runtime.markdown import table
from acmix_mm.runtime.parts import Features

from .measure import time_in_turn

ROOT = Path(__file__).resolve().parents[1]
EXPORT: dict[str, Any] = runpy.run_path(str(ROOT / 'tools' / 'export.py'))
DEMO = 'configs/demo/mask-rcnn_resnet26-acmix_fpn_shapes.py'

Run = Callable[[Tensor], Sequence[Tensor]]
Calls = dict[str, Callable[[], Any]]


class InPlaceOfBackbone(nn.Module):
    """What gives a detector its features."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> maps."""
        return tuple(self.run(image))


def network_input(detector: nn.Module, image: str) -> Tensor:
    """Return what the backbone of a detector is given for an image, (1, 3, H, W)."""
    seen: list[Tensor] = []
    handle = detector.get_submodule('backbone').register_forward_pre_hook(
        lambda _, inputs: seen.extend(inputs)
    )
    inference_detector(detector, image)
    handle.remove()
    return seen[0]


def three_ways(
    config: str, checkpoint: str, features: nn.Module, size: Sequence[int]
) -> dict[str, Run]:
    """Return what computes the features of an image of a size.

    Args:
        config: Config of the detector.
        checkpoint: Its weights.
        features: Its backbone and neck.
        size: Height and width.
    """
    with TemporaryDirectory() as folder:
        file = str(Path(folder, 'features.onnx'))
        options = ['--format', 'onnx', '--out', file, '--size', *map(str, size)]
        EXPORT['main']([config, checkpoint, '--part', 'features', *options])
        onnx = EXPORT['load']('onnx', file)
    return {'eager': features, 'compiled': torch.compile(features), 'ONNX': onnx}


def with_features(detector: nn.Module, run: Run) -> nn.Module:
    """Return a copy of a detector whose features come from elsewhere."""
    detector = deepcopy(detector)
    vars(detector)['_modules'].update(backbone=InPlaceOfBackbone(run), neck=None)
    return detector


def images_per_second(functions: Calls, rounds: int) -> list[str]:
    """Measure functions that handle one image each."""
    with torch.no_grad():
        times = time_in_turn(functions, rounds)
    return [f'{1 / statistics.median(seconds):.1f}' for seconds in times.values()]


def main(argv: list[str] | None = None) -> None:
    """Print a table with a column for each way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('image', help='file of an image')
    parser.add_argument('--config', default=DEMO, help='default: %(default)s')
    parser.add_argument(
        '--checkpoint', default='work_dirs/demo/epoch_20.pth', help='default: %(default)s'
    )
    parser.add_argument('--rounds', type=whole_number(1), default=25, help='default: %(default)s')
    parser.add_argument(
        '--threads',
        type=whole_number(1),
        default=torch.get_num_threads(),
        help='number of threads (default: that of torch, %(default)s here)',
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if not Path(args.image).is_file():
        sys.exit(f'There is no image {args.image} (working directory: {Path.cwd()}).')
    if mmcv.imread(args.image) is None:
        sys.exit(f'{args.image} cannot be read as an image.')
    patch_mmengine()  # which checkpoints can be loaded
    detector = init_detector(args.config, device='cpu').requires_grad_(False)
    require_fit(detector, args.checkpoint, complete=True)
    given = network_input(detector, args.image)
    height, width = given.shape[2:]
    ways = three_ways(args.config, args.checkpoint, Features(detector), (height, width))
    alone: Calls = {name: partial(run, given) for name, run in ways.items()}
    whole: Calls = {
        name: partial(inference_detector, with_features(detector, run), args.image)
        for name, run in ways.items()
    }
    rows = [
        ('backbone and neck', *images_per_second(alone, args.rounds)),
        ('whole detector, from file to masks', *images_per_second(whole, args.rounds)),
    ]
    print(f'\nimages per second, {height}x{width}, {args.threads} threads\n')
    print(table(('', *ways), rows), end='')


if __name__ == '__main__':
    main()
