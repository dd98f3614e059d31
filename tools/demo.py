# SPDX-License-Identifier: Apache-2.0
"""Train, evaluate and draw Mask R-CNN with an ACmix backbone on generated images.

    python tools/demo.py

It generates the data if needed, trains with tools/train.py, evaluates with tools/test.py, and
prints the AP table and the folder with the pictures. Run it again after an interruption to resume.
"""

import json
import os
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from mmengine.config import Config

from acmix_mm.preflight.data_paths import missing_data
from acmix_mm.runtime import newest_checkpoint

ROOT = Path(__file__).resolve().parents[1]
CONFIG = 'configs/demo/mask-rcnn_resnet26-acmix_fpn_shapes.py'
WORK_DIR = 'work_dirs/demo'
EXPECTED_AP50 = 0.80
# Waiting threads sleep. By default they keep their cores busy, which makes the training several
# times slower on a machine that has other work to do.
ENVIRONMENT = {'OMP_WAIT_POLICY': 'passive', **os.environ}


def run(*command: str) -> None:
    """Print and run a Python command, and exit with its exit code if it fails."""
    print(f'\n$ python {" ".join(command)}\n', flush=True)
    code = subprocess.run([sys.executable, *command], env=ENVIRONMENT).returncode
    if code:
        sys.exit(code)


def ap_table(metrics: dict[str, float]) -> str:
    """Format the metrics of ``CocoMetric`` as a table with rows for boxes and masks."""
    columns = dict(AP='mAP', AP50='mAP_50', AP75='mAP_75')
    lines = ['       ' + ''.join(f'{name:>8}' for name in columns)]
    for kind, key in (('boxes', 'bbox'), ('masks', 'segm')):
        values = [metrics[f'coco/{key}_{column}'] for column in columns.values()]
        lines.append(f'{kind:7}' + ''.join(f'{value:8.3f}' for value in values))
    return '\n'.join(lines)


def newest_metrics(work_dir: Path) -> dict[str, float]:
    """Read the metrics of the newest test, which mmengine writes to ``<time>/<time>.json``."""
    file = max(work_dir.glob('*/[0-9]*.json'), default=None)
    if file is None:
        sys.exit(f'tools/test.py wrote no metrics to {work_dir}/<time>/<time>.json.')
    try:
        metrics: dict[str, float] = json.loads(file.read_text())
        ap_table(metrics)
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f'{file} does not contain the metrics of a test: {type(error).__name__}: {error}.')
    return metrics


def main(argv: list[str] | None = None) -> None:
    """Run the demo."""
    ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter).parse_args(
        argv
    )
    os.chdir(ROOT)
    cfg = Config.fromfile(CONFIG)
    cfg.work_dir = WORK_DIR
    if missing_data(cfg, 'train', 'val'):
        run('tools/dataset/make_shapes.py')
    start = time.monotonic()
    run('tools/train.py', CONFIG, '--work-dir', WORK_DIR, '--resume')
    minutes = (time.monotonic() - start) / 60
    pictures = ROOT / WORK_DIR / 'pictures'
    checkpoint = newest_checkpoint(cfg)
    run(
        'tools/test.py',
        CONFIG,
        str(checkpoint),
        '--work-dir',
        WORK_DIR,
        '--show-dir',
        str(pictures),
    )

    metrics = newest_metrics(Path(WORK_DIR))
    print(f'\nHeld-out shapes, after {minutes:.1f} minutes of training in this run:\n')
    print(ap_table(metrics))
    print(f'\npictures (truth | prediction): {pictures}')
    print(f'to train again from the beginning: rm -r {WORK_DIR}')
    if metrics['coco/segm_mAP_50'] < EXPECTED_AP50:
        sys.exit(
            f'AP50 of masks is {metrics["coco/segm_mAP_50"]:.3f}, but at least {EXPECTED_AP50:.2f} '
            'was expected.'
        )


if __name__ == '__main__':
    main()
