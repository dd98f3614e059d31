# SPDX-License-Identifier: Apache-2.0
"""Inspect the data of a config: what it contains, and whether the config can use it.

Data sets are loaded by their own classes, with two exceptions that save time: COCO's annotation
files are read without building an index, and only a sample of the images is decoded.
"""

import gc
import json
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import Image, ImageOps

from .data_paths import dataset_paths, is_remote, leaf_datasets
from .known_datasets import KNOWN
from .type_name import type_name

Record = dict[str, Any]


@dataclass
class Report:
    """Result of the inspection of a data set.

    Attributes:
        summary: Numbers of images, annotations and classes.
        errors: Problems that make the data unusable for the config, each with a suggested fix.
        notes: Findings that may be intended, such as a subset.
    """

    summary: str = ''
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def distinct_datasets(cfg: Config, *splits: str) -> dict[str, Mapping]:
    """Return the data sets that a config reads, each of them once.

    Args:
        cfg: Config in the format of mmdet, mmseg or mmpretrain.
        *splits: Splits to include, from ``'train'``, ``'val'`` and ``'test'``. Splits that the
            config does not have are ignored.

    Returns:
        dict[str, Mapping]: Config of each data set, by a description that names its data loader,
        class and paths.

    Examples:
        >>> loader = dict(dataset=dict(type='CocoDataset', data_root='coco', ann_file='val.json'))
        >>> cfg = Config(dict(val_dataloader=loader, test_dataloader=loader))
        >>> list(distinct_datasets(cfg, 'train', 'val', 'test'))
        ['val_dataloader, CocoDataset: coco/val.json']
    """
    found: dict[tuple, tuple[str, Mapping]] = {}
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        for dataset in leaf_datasets(loader['dataset']) if loader else ():
            paths = tuple(dataset_paths(dataset).values())
            name = f'{split}_dataloader, {type_name(dataset["type"])}: {", ".join(paths)}'
            found.setdefault((dataset['type'], paths), (name, dataset))
    return dict(found.values())


def inspect_dataset(
    cfg: Mapping,
    samples: int = 32,
    track: Callable[[Sequence], Iterable] = iter,
    num_classes: int | None = None,
) -> Report:
    """Inspect a data set whose paths exist (see :func:`.data_paths.check_data`).

    Args:
        cfg: Config of a data set, not of a wrapper. The current default scope must be the library
            of the data set's class.
        samples: Number of images to decode together with their annotations. They are evenly spread
            over the data set. Default: 32.
        track: Function that iterates over the sample, for example with a progress bar.
            Default: ``iter``.
        num_classes: Number of classes of the model, with which labels are compared if the data set
            does not name its classes. Default: None.

    Returns:
        Report: The summary, errors and notes.

    Examples:
        >>> inspect_dataset(dict(type='NoDataset')).errors
        ["NoDataset cannot be read (KeyError: 'NoDataset is not in the ..."]
    """
    if is_remote(cfg):
        return Report(notes=['The data is in remote storage and was not inspected.'])
    with _paused_garbage_collection():
        return _inspect(cfg, samples, track, num_classes)


@contextmanager
def _paused_garbage_collection() -> Iterator[None]:
    """Disable Python's garbage collector.

    While a large annotation file is parsed, the collector would go through millions of new lists
    again and again, find no garbage, and take longer than the parsing itself.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _inspect(
    cfg: Mapping, samples: int, track: Callable[[Sequence], Iterable], num_classes: int | None
) -> Report:
    report = Report()
    try:
        dataset: Any = DATASETS.build({**cfg, 'pipeline': [], 'lazy_init': True})
        records = _read_coco(dataset, report) if _is_coco(dataset) else dataset.load_data_list()
    except Exception as error:  # the data set's class may raise any exception
        report.errors.append(f'{type_name(cfg["type"])} cannot be read ({_reason(error)}).')
        return report
    chosen = [records[i] for i in _spread(len(records), samples)]
    report.errors += _missing_files(records, dataset)
    classes = dataset.metainfo.get('classes') or range(num_classes or 0)
    report.errors += _wrong_labels(records, dataset, len(classes))
    for record in track(chosen):
        report.errors += _sample_errors(record, dataset, _map_loader(cfg), len(classes))
    counts = _count(records)
    report.notes += _unexpected_counts(counts, dataset)
    numbers = counts | dict(classes=len(classes), decoded=len(chosen))
    report.summary = ', '.join(f'{number} {what}' for what, number in numbers.items())
    return report


def _is_coco(dataset: Any) -> bool:
    """Return whether a data set reads its annotation file like mmdet's ``CocoDataset``."""
    reader = type(dataset).load_data_list.__qualname__
    return reader == 'CocoDataset.load_data_list' and dataset.COCOAPI.__name__ == 'COCO'


def _read_coco(dataset: Any, report: Report) -> list[Record]:
    """Return the images of a COCO annotation file, each with its annotations.

    Problems that concern the file as a whole are added to the report.
    """
    file = dataset.ann_file
    content = _read_json(file)
    names = {category['id']: category['name'] for category in content['categories']}
    classes = dataset.metainfo['classes']
    missing = [name for name in classes if name not in names.values()]
    if missing:
        report.errors.append(
            f'{file} has no category {_some(missing)}; it has {_some(list(names.values()), 5)}. '
            'Set metainfo=dict(classes=(...)) of the data set to the names in the file.'
        )
    unused = [name for name in names.values() if name not in classes]
    if unused:
        report.notes.append(f'{file} has categories that the config does not use: {_some(unused)}.')

    # Files without annotations, such as COCO's test-dev, can still be used for prediction.
    annotations = content.get('annotations', ()) if dataset.test_mode else content['annotations']
    by_image: dict[Any, list[Record]] = {image['id']: [] for image in content['images']}
    orphans: dict[str, list] = defaultdict(list)
    for annotation in annotations:
        if annotation['category_id'] not in names:
            orphans['category_id'].append(annotation['id'])
        if annotation['image_id'] in by_image:
            by_image[annotation['image_id']].append(annotation)
        else:
            orphans['image_id'].append(annotation['id'])
    for key, ids in orphans.items():
        report.errors.append(
            f'{file}: the {key} of {len(ids)} annotations is not defined in the file (annotation '
            f'{_some(ids)}). Correct or remove them.'
        )
    folder = dataset.data_prefix['img']
    return [
        dict(
            img_path=os.path.join(folder, image['file_name']),
            size=(image['height'], image['width']),
            annotations=by_image[image['id']],
        )
        for image in content['images']
    ]


def _read_json(file: str) -> Any:
    try:
        return json.loads(Path(file).read_bytes())
    except ValueError as error:
        raise ValueError(
            f'{file} is not valid JSON: {error}; download or unpack it again'
        ) from error


def _spread(length: int, samples: int) -> Iterable[int]:
    """Return up to ``samples`` evenly spaced indices that include the first and the last."""
    return np.unique(np.linspace(0, length - 1, min(length, samples)).round().astype(int)).tolist()


def _missing_files(records: Sequence[Record], dataset: Any) -> Iterator[str]:
    """Yield one error if images do not exist, and one if semantic maps do not exist."""
    if not records:
        yield 'The data set has no images. Check its data_prefix, ann_file and img_suffix.'
    known = KNOWN.get(type(dataset).__name__)
    source = f' ({known.source})' if known else ''
    listings: dict[str, set[str]] = {}
    for key in ('img_path', 'seg_map_path'):
        paths = [record[key] for record in records if record.get(key)]
        missing = []
        for path in paths:
            folder, name = os.path.split(path)
            if folder not in listings:
                listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
            if name not in listings[folder]:
                missing.append(path)
        if missing:
            yield (
                f'{len(missing)} of {len(paths)} files are not there: {_some(missing)}. Get them '
                f'again{source}, or remove them from the annotations.'
            )


def _wrong_labels(records: Sequence[Record], dataset: Any, num_classes: int) -> Iterator[str]:
    """Yield one error if class labels of images are out of range."""
    labels = {record['gt_label'] for record in records if 'gt_label' in record}
    wrong = sorted(labels - set(range(num_classes))) if num_classes else []
    if wrong:
        yield (
            f'The labels {_some(wrong)} are out of range: the {num_classes} classes are 0 to '
            f"{num_classes - 1}. Correct {dataset.ann_file or 'the folders'}, or the data set's "
            'metainfo.'
        )


def _map_loader(cfg: Mapping) -> Mapping:
    """Return the transform in a data set's pipeline that loads semantic maps, or mmseg's default.

    It applies options such as ``reduce_zero_label``, so it gives the labels that the loss sees.
    """
    steps = cfg.get('pipeline', ())
    loaders = (step for step in steps if type_name(step['type']) == 'LoadAnnotations')
    return next(loaders, dict(type='LoadAnnotations'))


def _sample_errors(
    record: Record, dataset: Any, map_loader: Mapping, num_classes: int
) -> Iterator[str]:
    """Yield the errors of an image and its annotations, except for missing files."""
    path = record['img_path']
    if not os.path.exists(path):
        return
    try:
        size = _decode(path)
    except (OSError, SyntaxError, ValueError) as error:
        yield f'{path} cannot be decoded ({_reason(error)}). Download or unpack it again.'
        return
    if record.get('size', size) != size:
        yield (
            f'{path} has {_by(size)} pixels, but its annotation says {_by(record["size"])}. Use '
            'the images that the annotations were made for.'
        )
        return
    for annotation in record.get('annotations', ()):
        yield from _instance_errors(annotation, path, size)
    seg_map = record.get('seg_map_path')
    if seg_map and not _is_coco(dataset) and os.path.exists(seg_map):
        yield from _map_errors(record, size, dataset, map_loader, num_classes)


def _decode(path: str) -> tuple[int, int]:
    """Decode an image, and return its height and width after EXIF rotation, as in mmcv.

    Pillow raises an error for a truncated file, where OpenCV would fill up the missing part.
    """
    with Image.open(path) as image:
        width, height = ImageOps.exif_transpose(image).size  # decodes the image
    return height, width


def _instance_errors(annotation: Record, path: str, size: tuple[int, int]) -> Iterator[str]:
    """Yield the errors of a COCO annotation."""
    from pycocotools import mask

    height, width = size
    x, y, box_width, box_height = annotation['bbox']
    if x >= width or y >= height or x + box_width < 0 or y + box_height < 0:
        yield (
            f'{path}: the box of annotation {annotation["id"]}, {annotation["bbox"]}, is outside '
            f'the image of {_by(size)} pixels. Boxes must be [x, y, width, height] in pixels.'
        )
    segmentation = annotation.get('segmentation')
    if not segmentation:
        return
    try:
        if isinstance(segmentation, list) or isinstance(segmentation['counts'], list):
            segmentation = mask.frPyObjects(segmentation, height, width)
        sizes = [tuple(rle['size']) for rle in np.atleast_1d(segmentation)]
    except Exception as error:  # pycocotools may raise any exception
        yield (
            f'{path}: the mask of annotation {annotation["id"]} cannot be decoded '
            f'({_reason(error)}). Masks must be polygons or RLE in the format of COCO.'
        )
        return
    if any(mask_size != size for mask_size in sizes):
        yield (
            f'{path} has {_by(size)} pixels, but the mask of annotation {annotation["id"]} has '
            f'{_by(sizes[0])}. Use the images that the annotations were made for.'
        )


def _map_errors(
    record: Record, size: tuple[int, int], dataset: Any, map_loader: Mapping, num_classes: int
) -> Iterator[str]:
    """Yield the errors of a semantic map."""
    path = record['seg_map_path']
    try:
        labels = TRANSFORMS.build(map_loader)(dict(record, seg_fields=[]))['gt_seg_map']
    except Exception as error:  # the transform in the config may raise any exception
        yield f'{path} cannot be decoded ({_reason(error)}). Download or unpack it again.'
        return
    if labels.shape != size:
        yield (
            f'{path} has shape {labels.shape}, but its image has {size}. A map must have one '
            'channel and the size of its image.'
        )
        return
    wrong = set(np.unique(labels).tolist()) - {dataset.ignore_index, *range(num_classes)}
    if num_classes and wrong:
        yield (
            f'{path} has the labels {_some(sorted(wrong))}: {num_classes} classes are 0 to '
            f'{num_classes - 1}, and {dataset.ignore_index} is ignored. Convert the maps, or set '
            "metainfo and reduce_zero_label of the data set, and num_classes of the model's heads, "
            'to match them.'
        )


def _count(records: Sequence[Record]) -> dict[str, int]:
    counts = dict(images=len(records))
    if records and 'annotations' in records[0]:
        counts['annotations'] = sum(len(record['annotations']) for record in records)
    return counts


def _unexpected_counts(counts: Mapping[str, int], dataset: Any) -> Iterator[str]:
    """Yield a note if a public data set does not have its known number of images or annotations."""
    known = KNOWN.get(type(dataset).__name__)
    expected = known.counts_of([dataset.ann_file, *dataset.data_prefix.values()]) if known else {}
    if any(counts[what] != number for what, number in expected.items()):
        whole = ', '.join(f'{number} {what}' for what, number in expected.items())
        yield (
            f'The whole data set has {whole}. Fewer are fine where a subset is meant; if none is, '
            'download or unpack it again.'
        )


def _some(items: Collection, most: int = 3) -> str:
    """Return the first items as text, followed by the number of the others."""
    shown = ', '.join(map(str, list(items)[:most]))
    return f'{shown} and {len(items) - most} more' if len(items) > most else shown


def _by(size: tuple[int, int]) -> str:
    height, width = size
    return f'{width}x{height}'


def _reason(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())}'
