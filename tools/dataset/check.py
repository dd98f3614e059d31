# SPDX-License-Identifier: Apache-2.0
"""Check that the data of a config exists and can be used.

    python tools/dataset/check.py configs/mask_rcnn_acmix.py [--samples 32] [--cfg-options ...]

Each head of the model must have as many classes as the data. For each data set, it checks that all
files exist, including those that the annotations name, and that the classes fit the config. It
compares the numbers of images and annotations with those of COCO, ADE20K, Cityscapes, PASCAL VOC
2012 and ImageNet-1k, looks at every annotation of COCO files, and decodes a sample of images and
semantic maps. Errors give exit code 1. Notes, for example on incomplete data sets, do not.
"""

import sys
from argparse import Namespace
from functools import partial

from mmengine.registry import init_default_scope
from mmengine.utils import track_iter_progress

from acmix_mm.preflight.arguments import whole_number
from acmix_mm.preflight.classes import numbers_of_classes
from acmix_mm.preflight.data_content import distinct_datasets, inspect_dataset
from acmix_mm.runtime import config_parser, read_config, require_inputs

SPLITS = ('train', 'val', 'test')


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the config, the options that change it, and the size of the sample."""
    parser = config_parser('Check that the data of a config exists and can be used.')
    parser.add_argument(
        '--samples',
        type=whole_number(0),
        default=32,
        help='number of images to decode from each data set, with annotations (default: 32)',
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Check the data sets of a config one by one."""
    args = parse_args(argv)
    cfg = read_config(args)
    require_inputs(cfg, SPLITS, [])
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    track = partial(track_iter_progress, file=sys.stderr) if sys.stderr.isatty() else iter
    num_classes = max(numbers_of_classes(cfg.get('model')).values(), default=None)
    datasets = distinct_datasets(cfg, *SPLITS)
    if not datasets:
        sys.exit(f'{args.config} has no data sets: no train_, val_ or test_dataloader.')
    errors = 0
    for name, dataset in datasets.items():
        print(name, flush=True)
        report = inspect_dataset(dataset, args.samples, track, num_classes)
        print(report.summary)
        for error in report.errors:
            print(f'  error: {error}')
        for note in report.notes:
            print(f'  note: {note}')
        errors += len(report.errors)
    if errors:
        sys.exit(f'Errors: {errors}. The data cannot be used as it is.')
    print('The data can be used.')


if __name__ == '__main__':
    main()
