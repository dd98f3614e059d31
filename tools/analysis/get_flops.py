# SPDX-License-Identifier: Apache-2.0
"""Count parameters and FLOPs of the model of a config, part by part.

    python tools/analysis/get_flops.py configs/mask_rcnn_acmix.py [--shape 800 1280]

FLOPs are multiply-adds, as in papers on backbones: those of convolutions, matrix products and
attention, including ACmix operators, in the prediction for one image. Norms, activations, resizing
and sampling (RoIAlign, deformable attention) are not counted. Detectors are counted with as many
proposals, and mask heads with as many detections, as the config's test_cfg allows. A head that is
used only in training has parameters but no FLOPs.

The network runs on the CPU with random weights and a random image; no weights are loaded.
"""

from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope

from acmix_mm.complexity import Complexity, measure_parts
from acmix_mm.preflight.arguments import whole_number
from acmix_mm.runtime import config_parser, mistakes_are_one_message, read_config


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = config_parser(__doc__)
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.add_argument(
        '--shape',
        type=whole_number(1),
        nargs='+',
        metavar=('H', 'W'),
        help='height and width of the image, or one number for both (default: 800 1280 for '
        'detection, the crop size of training for segmentation, 224 for classification)',
    )
    args = parser.parse_args(argv)
    if args.shape and len(args.shape) > 2:
        parser.error(f'argument --shape: expected one or two numbers, got {len(args.shape)}')
    return args


def default_shape(cfg: Config) -> tuple[int, int]:
    """Return the height and width with which models of this task are usually compared."""
    if cfg.default_scope == 'mmseg':
        return cfg.model.data_preprocessor.get('size', (512, 512))
    return (224, 224) if cfg.default_scope == 'mmpretrain' else (800, 1280)


def keep_all_boxes(test_cfg: dict) -> None:
    """Change a test_cfg in place so that a detector keeps boxes that overlap or have low scores.

    The detector then keeps the largest number of boxes that the config allows, whatever the random
    weights are.
    """
    for name, value in test_cfg.items():
        if name == 'score_thr':
            test_cfg[name] = 0.0
        elif name == 'iou_threshold':
            test_cfg[name] = 1.0
        elif isinstance(value, dict):
            keep_all_boxes(value)


def prediction(cfg: Config, model: Any, shape: tuple[int, int]) -> Callable[[], Any]:
    """Return a function that predicts on one random image."""
    image = torch.randint(256, (3, *shape), dtype=torch.uint8)
    meta = dict(ori_shape=shape, img_shape=shape, pad_shape=shape, scale_factor=(1.0, 1.0))
    if cfg.default_scope == 'mmdet':
        from mmdet.structures import DetDataSample as Sample
    elif cfg.default_scope == 'mmseg':
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmpretrain.structures import DataSample as Sample
    sample = Sample(metainfo=meta)
    data = model.data_preprocessor(dict(inputs=[image], data_samples=[sample]))
    inputs, samples = data['inputs'], data['data_samples']
    if cfg.default_scope == 'mmseg':  # its `predict` may split a large image into several
        return lambda: model.encode_decode(inputs, [sample.metainfo for sample in samples])
    return lambda: model(inputs, samples, mode='predict')


def count(cfg: Config, shape: tuple[int, int]) -> dict[str, Complexity]:
    """Count parameters and multiply-adds of each part of a config's model."""
    init_default_scope(cfg.default_scope)
    keep_all_boxes(cfg.model.get('test_cfg') or {})
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    return measure_parts(model, prediction(cfg, model, shape))


def table(parts: dict[str, Complexity]) -> str:
    """Format one line for each part that has parameters or FLOPs, and one for the whole model."""
    shown = {name or 'other': part for name, part in parts.items() if part.params or part.macs}
    shown['model'] = Complexity(
        sum(part.params for part in parts.values()), sum(part.macs for part in parts.values())
    )
    width = max(map(len, shown))
    return '\n'.join([
        f'{"":{width}}  parameters (M)   FLOPs (G)',
        *(
            f'{name:{width}}  {part.params / 1e6:14.3f}  {part.macs / 1e9:10.3f}'
            for name, part in shown.items()
        ),
    ])  # fmt: skip


def main(argv: list[str] | None = None) -> dict[str, Complexity]:
    """Print the table, and return the parameters and multiply-adds of each part."""
    args = parse_args(argv)
    cfg = read_config(args)
    height, *rest = args.shape or default_shape(cfg)
    width = rest[0] if rest else height
    with mistakes_are_one_message(cfg):
        parts = count(cfg, (height, width))
    print(f'{args.config}, one image of {height}x{width} (height x width)\n')
    print(table(parts))
    return parts


if __name__ == '__main__':
    main()
