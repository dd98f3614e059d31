# SPDX-License-Identifier: Apache-2.0
"""Check that the data of a config is there and can be used.

    python tools/dataset/check.py configs/mask_rcnn_acmix.py [--samples 32] [--cfg-options ...]

Looked at are, for each data set: its files, those that its annotations name included; its classes;
numbers of images and annotations, against those of COCO, ADE20K, Cityscapes, PASCAL VOC 2012 and
ImageNet-1k; and a sample of images and annotations, which are decoded. Errors end it with exit code
1; notes, such as that a data set is not whole, do not.
"""

import sys
from argparse import Namespace
from functools import partial

from mmengine.registry import init_default_scope
from mmengine.utils import track_iter_progress

from acmix_mm.preflight.data_content import distinct_datasets, inspect_dataset
from acmix_mm.runtime import config_parser, read_config, require_inputs

SPLITS = ('train', 'val', 'test')


def parse_args(argv: list[str] | None = None) -> Namespace:
    """The config, the changes to it and the size of the sample."""
    parser = config_parser('Check that the data of a config is there and can be used.')
    parser.add_argument(
        '--samples',
        type=int,
        default=32,
        help='images of each data set to decode, with their annotations (default: 32)',
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Check the data sets of a config one by one."""
    args = parse_args(argv)
    cfg = read_config(args)
    require_inputs(cfg, SPLITS, [])
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    track = partial(track_iter_progress, file=sys.stderr) if sys.stderr.isatty() else iter
    errors = 0
    for name, dataset in distinct_datasets(cfg, *SPLITS).items():
        print(name, flush=True)
        report = inspect_dataset(dataset, args.samples, track)
        print(report.summary)
        for error in report.errors:
            print(f'  error: {error}')
        for note in report.notes:
            print(f'  note: {note}')
        errors += len(report.errors)
    if errors:
        sys.exit(f'Errors: {errors}.')
    print('The data can be used.')


if __name__ == '__main__':
    main()
