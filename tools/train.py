# SPDX-License-Identifier: Apache-2.0
"""Train a detector, a segmentor or a classifier.

    python tools/train.py configs/mask_rcnn_acmix.py [--amp] [--resume] [--cfg-options ...]

The config says which: its ``default_scope`` is mmdet, mmseg or mmpretrain. Without a GPU it runs on
the CPU.
"""

import sys
from argparse import Namespace

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner

from acmix_mm.preflight.weights import pretrained_checkpoints
from acmix_mm.runtime import argument_parser, build_runner, load_config, require_inputs


def parse_args(argv: list[str] | None = None) -> Namespace:
    """The common options and those of training."""
    parser = argument_parser('Train a detector, a segmentor or a classifier.')
    parser.add_argument(
        '--amp', action='store_true', help='train in mixed precision (needs an accelerator)'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the total batch size over auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from a checkpoint; without a name, from the latest in the work dir',
    )
    return parser.parse_args(argv)


def use_amp(cfg: Config) -> None:
    """Train in mixed precision."""
    if get_device() == 'cpu':
        sys.exit(
            '--amp: mmengine trains in mixed precision on accelerators only, and none is '
            'here. Leave it out to train on the CPU in single precision.'
        )
    if cfg.optim_wrapper.type not in ('OptimWrapper', 'AmpOptimWrapper'):
        sys.exit(f'--amp goes with OptimWrapper, and the config has {cfg.optim_wrapper.type}.')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def use_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate with the batch size."""
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        sys.exit(
            '--auto-scale-lr: the config does not say for which batch size its learning rate '
            'is meant; add auto_scale_lr=dict(base_batch_size=...).'
        )
    cfg.auto_scale_lr.enable = True


def main(argv: list[str] | None = None) -> Runner:
    """Train, and return the runner that did."""
    args = parse_args(argv)
    cfg = load_config(args)
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        use_auto_scale_lr(cfg)
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    checkpoints = [cfg.load_from] if cfg.get('load_from') else []
    checkpoints += pretrained_checkpoints(cfg.model)
    require_inputs(cfg, ('train', 'val'), checkpoints)
    runner = build_runner(cfg)
    runner.train()
    return runner


if __name__ == '__main__':
    main()
