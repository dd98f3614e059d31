# SPDX-License-Identifier: Apache-2.0
"""Evaluate a checkpoint of a detector, a segmentor or a classifier.

    python tools/test.py configs/mask_rcnn_acmix.py work_dirs/mask_rcnn_acmix/epoch_12.pth \
        [--show-dir pictures] [--out predictions.pkl] [--tta]

The ``default_scope`` of the config (mmdet, mmseg or mmpretrain) decides which of them. Without a
GPU, it runs on the CPU.
"""

import sys
from argparse import Namespace

from mmengine.config import Config

from acmix_mm.preflight.data_paths import leaf_datasets
from acmix_mm.runtime import (
    argument_parser,
    build_runner,
    load_config,
    mistakes_are_one_message,
    require_fit,
    require_inputs,
    require_outputs,
)


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the common options and those of testing."""
    parser = argument_parser('Evaluate a checkpoint of a detector, a segmentor or a classifier.')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument(
        '--out',
        help='save the predictions: to a folder of PNGs for segmentation, else to a .pkl file',
    )
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='save pictures of the predictions to this folder')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds to --show each picture (default: 2)'
    )
    parser.add_argument('--tta', action='store_true', help='use test-time augmentation')
    parser.add_argument(
        '--allow-missing',
        action='store_true',
        help='test a checkpoint that lacks weights of the model, which are random then',
    )
    return parser.parse_args(argv)


def draw_predictions(cfg: Config, args: Namespace) -> None:
    """Change a config, in place, to show predictions or save pictures of them."""
    if 'visualization' not in cfg.get('default_hooks', {}):
        sys.exit(
            '--show and --show-dir need a visualization hook, which this config does not have. Add '
            "one, such as default_hooks=dict(visualization=dict(type='DetVisualizationHook'))."
        )
    hook = cfg.default_hooks.visualization
    if cfg.default_scope == 'mmpretrain':
        hook.update(enable=True, interval=1, out_dir=args.show_dir)
        hook.update(show=args.show, wait_time=args.wait_time)
        return
    # interval: by default, mmseg of upstream draws every 50th batch and the others every image.
    hook.update(draw=True, interval=1, show=args.show, wait_time=args.wait_time)
    if args.show_dir and cfg.default_scope == 'mmdet':
        hook.test_out_dir = args.show_dir
    elif args.show_dir:
        cfg.visualizer.save_dir = args.show_dir


def evaluators_of(cfg: Config) -> list[dict]:
    """Return the test evaluators of a config, which has one or several, as a list."""
    return cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]


def keep_predictions(cfg: Config, out: str) -> None:
    """Change a config, in place, to save predictions.

    Args:
        cfg: Config to change.
        out: A folder for segmentation, or a pickle file for detection and classification.
    """
    evaluators = evaluators_of(cfg)
    if cfg.default_scope == 'mmseg':
        for evaluator in evaluators:
            evaluator.update(output_dir=out, keep_results=True)
    elif out.endswith(('.pkl', '.pickle')):
        dump = 'DumpDetResults' if cfg.default_scope == 'mmdet' else 'DumpResults'
        evaluators.append(dict(type=dump, out_file_path=out))
    else:
        sys.exit(f'--out must end in .pkl or .pickle for detection and classification, got {out}.')
    cfg.test_evaluator = evaluators


def use_tta(cfg: Config) -> None:
    """Change a config, in place, to merge the predictions for several views of each image.

    The views are those of ``tta_model`` and ``tta_pipeline`` in the config. For detection, their
    default is each image and its mirror image.
    """
    if cfg.default_scope == 'mmdet':
        if any('segm' in evaluator.get('metric', ()) for evaluator in evaluators_of(cfg)):
            sys.exit(
                '--tta: mmdet merges boxes only, but this config evaluates masks. Test without '
                '--tta, or set test_evaluator.metric=bbox and remove the mask head.'
            )
        nms = dict(type='nms', iou_threshold=0.5)
        cfg.setdefault(
            'tta_model', dict(type='DetTTAModel', tta_cfg=dict(nms=nms, max_per_img=100))
        )
        cfg.setdefault(
            'tta_pipeline',
            flipped_too(next(leaf_datasets(cfg.test_dataloader.dataset))['pipeline']),
        )
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        sys.exit('--tta: this config has no tta_model and tta_pipeline. Add them to it.')
    cfg.model = dict(cfg.tta_model, module=cfg.model)
    for dataset in leaf_datasets(cfg.test_dataloader.dataset):
        dataset['pipeline'] = cfg.tta_pipeline


def flipped_too(pipeline: list[dict]) -> list[dict]:
    """Return a pipeline that gives two views of each image: the image and its mirror image."""
    *steps, pack = pipeline
    meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip',
                 'flip_direction')  # fmt: skip
    flips = [dict(type='RandomFlip', prob=prob) for prob in (1.0, 0.0)]
    views = dict(type='TestTimeAug', transforms=[flips, [dict(pack, meta_keys=meta_keys)]])
    return [*steps, views]


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Evaluate a checkpoint, and return the metrics."""
    args = parse_args(argv)
    cfg = load_config(args, ['model', 'test_dataloader', 'test_cfg', 'test_evaluator'])
    cfg.load_from = args.checkpoint
    cfg.resume = False
    if args.show or args.show_dir:
        draw_predictions(cfg, args)
    if args.out is not None:
        keep_predictions(cfg, args.out)
    if args.tta:
        use_tta(cfg)
    require_inputs(cfg, ['test'], [args.checkpoint])
    folders = {'--work-dir': cfg.work_dir, '--show-dir': args.show_dir}
    files: dict[str, str] = {}
    if args.out is not None:
        (folders if cfg.default_scope == 'mmseg' else files)['--out'] = args.out
    require_outputs(folders, files)
    with mistakes_are_one_message(cfg):
        runner = build_runner(cfg)
        if not args.allow_missing:
            require_fit(runner.model, args.checkpoint, complete=True)
        return runner.test()


if __name__ == '__main__':
    main()
