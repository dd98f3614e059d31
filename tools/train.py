# SPDX-License-Identifier: Apache-2.0
"""Train a detector, a segmentor or a classifier.

    python tools/train.py configs/mask_rcnn_acmix.py [--amp] [--resume] [--cfg-options ...]

The ``default_scope`` of the config (mmdet, mmseg or mmpretrain) decides which of them. Without a
GPU, it trains on the CPU.
"""

import sys
from argparse import Namespace

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner

from acmix_mm.preflight.type_name import type_name
from acmix_mm.runtime import (
    argument_parser,
    load_config,
    require_inputs,
    require_outputs,
    resume,
    train,
)


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the common options and those of training."""
    parser = argument_parser('Train a detector, a segmentor or a classifier.')
    parser.add_argument(
        '--amp', action='store_true', help='train in mixed precision (needs an accelerator)'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='multiply the learning rate by (total batch size) / auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from this checkpoint; without a value, from the latest one in the work dir',
    )
    return parser.parse_args(argv)


def use_amp(cfg: Config) -> None:
    """Change a config, in place, to train in mixed precision."""
    if get_device() == 'cpu':
        sys.exit(
            '--amp: mmengine trains in mixed precision on accelerators only, and this machine has '
            'none. Train without --amp, in single precision.'
        )
    if type_name(cfg.optim_wrapper.type) not in ('OptimWrapper', 'AmpOptimWrapper'):
        sys.exit(
            f'--amp does not support the {cfg.optim_wrapper.type} of this config. Use an '
            'OptimWrapper, or train without --amp.'
        )
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def use_auto_scale_lr(cfg: Config) -> None:
    """Change a config, in place, to scale the learning rate with the batch size."""
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        sys.exit(
            '--auto-scale-lr: the config does not say which batch size its learning rate is for. '
            'Add auto_scale_lr=dict(base_batch_size=...) to it.'
        )
    cfg.auto_scale_lr.enable = True


def main(argv: list[str] | None = None) -> Runner:
    """Train a model, and return its runner."""
    args = parse_args(argv)
    cfg = load_config(args, ['model', 'train_dataloader', 'train_cfg', 'optim_wrapper'])
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        use_auto_scale_lr(cfg)
    checkpoint = args.resume or (cfg.get('resume') and (cfg.get('load_from') or 'auto'))
    newest = checkpoint == 'auto'
    if checkpoint and not newest:
        resume(cfg, checkpoint)
    checkpoints = [cfg.load_from] if cfg.get('load_from') and not newest else []
    require_inputs(cfg, ('train', 'val'), checkpoints, pretrained=True)
    require_outputs({'--work-dir': cfg.work_dir})
    return train(cfg, resume_newest=newest)


if __name__ == '__main__':
    main()
