# SPDX-License-Identifier: Apache-2.0
"""Inspect the data of a config: what it contains, and whether the config can use it.

Data sets are loaded by their own classes, with two exceptions that save time: COCO's annotation
files are read without building an index, and only a sample of the images is decoded.
"""

import gc
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import Image, ImageOps

from .coco import BadAnnotations, by, defects, read_coco, some
from .data_paths import dataset_paths, is_remote, leaf_datasets
from .known_datasets import KNOWN
from .type_name import type_name

Record = dict[str, Any]

_FILES = ('img_path', 'seg_map_path')


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
        if _is_coco(dataset):
            records = _read_coco(dataset, report, _loads_masks(cfg))
        else:
            records = dataset.load_data_list()
    except BadAnnotations as error:
        report.errors.append(str(error))
        return report
    except Exception as error:  # the data set's class may raise any exception
        report.errors.append(f'{type_name(cfg["type"])} cannot be read ({_reason(error)}).')
        return report
    chosen = [records[i] for i in _spread(len(records), samples)]
    listings = _list_folders(records)
    report.errors += _missing_files(records, dataset, listings)
    report.notes += _foreign_files(listings)
    classes = dataset.metainfo.get('classes') or range(num_classes or 0)
    report.errors += _wrong_labels(records, dataset, len(classes))
    for record in track(chosen):
        report.errors += _sample_errors(record, dataset, cfg, len(classes))
    counts = _count(records)
    report.notes += _unexpected_counts(counts, dataset)
    numbers = counts | dict(classes=len(classes), decoded=len(chosen))
    report.summary = ', '.join(f'{number} {what}' for what, number in numbers.items())
    return report


def _is_coco(dataset: Any) -> bool:
    """Return whether a data set reads its annotation file like mmdet's ``CocoDataset``."""
    reader = type(dataset).load_data_list.__qualname__
    return reader == 'CocoDataset.load_data_list' and dataset.COCOAPI.__name__ == 'COCO'


def _read_coco(dataset: Any, report: Report, needs_mask: bool) -> list[Record]:
    """Return the images of a COCO annotation file.

    Problems of its entries are added to the report.

    Raises:
        BadAnnotations: The file has another structure.
    """
    file = dataset.ann_file
    # Files without annotations, such as COCO's test-dev, can still be used for prediction.
    content = read_coco(file, annotated=not dataset.test_mode)
    known = KNOWN.get(type(dataset).__name__)
    is_published = bool(known and known.counts_of([file]))
    for defect, message in defects(content, file, needs_mask, dataset.test_mode):
        noted = is_published and defect.is_published
        (report.notes if noted else report.errors).append(message)

    _compare_classes(content, dataset, report)
    folder = dataset.data_prefix['img']
    image_ids = (annotation.get('image_id') for annotation in content['annotations'])
    numbers = Counter(image_id for image_id in image_ids if isinstance(image_id, int | str))
    return [
        dict(
            img_path=os.path.join(folder, image['file_name']),
            size=(image['height'], image['width']),
            annotations=numbers[image['id']],
        )
        for image in content['images']
    ]


def _compare_classes(content: Mapping[str, list], dataset: Any, report: Report) -> None:
    """Add to a report how the categories of a COCO file differ from the classes of the config."""
    file, classes = dataset.ann_file, dataset.metainfo['classes']
    names = {category['id']: category['name'] for category in content['categories']}
    missing = [name for name in classes if name not in names.values()]
    if missing:
        report.errors.append(
            f'{file} has no category {some(missing)}; it has {some(list(names.values()), 5)}. '
            'Set metainfo=dict(classes=(...)) of the data set to the names in the file.'
        )
    unused = [name for name in names.values() if name not in classes]
    if unused:
        report.notes.append(f'{file} has categories that the config does not use: {some(unused)}.')
    if dataset.test_mode or report.errors or not content['images']:
        return
    if not any(names[entry['category_id']] in classes for entry in content['annotations']):
        report.errors.append(
            f'{file} has no annotations of the classes of the config ({some(classes)}), so there '
            'is nothing to learn. Add the annotations, or use another file.'
        )


def _spread(length: int, samples: int) -> Iterable[int]:
    """Return up to ``samples`` evenly spaced indices that include the first and the last."""
    return np.unique(np.linspace(0, length - 1, min(length, samples)).round().astype(int)).tolist()


def _list_folders(records: Sequence[Record]) -> dict[str, set[str]]:
    """Return the names of the files in each folder of images and maps.

    Links to files that do not exist are left out, and so is what is no file, such as a named pipe.
    """
    paths = (record.get(key) for record in records for key in _FILES)
    folders = {os.path.dirname(path) for path in paths if path}
    return {
        folder: {entry.name for entry in os.scandir(folder or '.') if entry.is_file()}
        for folder in folders
        if os.path.isdir(folder or '.')
    }


def _missing_files(
    records: Sequence[Record], dataset: Any, listings: Mapping[str, set[str]]
) -> Iterator[str]:
    """Yield one error if images do not exist, and one if semantic maps do not exist."""
    if not records:
        yield 'The data set has no images. Check its data_prefix, ann_file and img_suffix.'
    known = KNOWN.get(type(dataset).__name__)
    source = f' ({known.source})' if known else ''
    for key in _FILES:
        paths = [record[key] for record in records if record.get(key)]
        missing = [
            path
            for path in paths
            if os.path.basename(path) not in listings.get(os.path.dirname(path), ())
        ]
        if missing:
            yield (
                f'{len(missing)} of {len(paths)} files are not there: {some(missing)}. Get them '
                f'again{source}, or remove them from the annotations.'
            )


def _foreign_files(listings: Mapping[str, set[str]]) -> Iterator[str]:
    """Yield a note for each folder with files that macOS adds to archives."""
    for folder, names in listings.items():
        number = sum(name.startswith('._') for name in names)
        if number:
            yield (
                f'{folder} has {number} files of macOS beside the data, whose names begin with '
                f"'._'. To remove them: find {folder} -name '._*' -delete"
            )


def _wrong_labels(records: Sequence[Record], dataset: Any, num_classes: int) -> Iterator[str]:
    """Yield one error if class labels of images are out of range."""
    labels = {record['gt_label'] for record in records if 'gt_label' in record}
    wrong = sorted(labels - set(range(num_classes))) if num_classes else []
    if wrong:
        yield (
            f'The labels {some(wrong)} are out of range: the {num_classes} classes are 0 to '
            f"{num_classes - 1}. Correct {dataset.ann_file or 'the folders'}, or the data set's "
            'metainfo.'
        )


def _steps(cfg: Mapping, name: str) -> Iterator[Mapping]:
    """Yield the transforms of a class in a data set's pipeline."""
    return (step for step in cfg.get('pipeline', ()) if type_name(step['type']) == name)


def _loads_masks(cfg: Mapping) -> bool:
    return any(step.get('with_mask') for step in _steps(cfg, 'LoadAnnotations'))


def _sample_errors(record: Record, dataset: Any, cfg: Mapping, num_classes: int) -> Iterator[str]:
    """Yield the errors of an image and its map, except for missing files."""
    path = record['img_path']
    if not os.path.isfile(path):
        return
    try:
        size = _decode(path)
        for step in _steps(cfg, 'LoadImageFromFile'):  # its decoder may support fewer formats
            TRANSFORMS.build(step)(dict(img_path=path))
    except Image.DecompressionBombError as error:
        yield f'{path} is too large ({_reason(error)}). Scale it down, with its annotations.'
        return
    except Exception as error:  # decoders raise many exceptions
        yield f'{path} cannot be decoded ({_reason(error)}). Download or unpack it again.'
        return
    if record.get('size', size) != size:
        yield (
            f'{path} has {by(size)} pixels, but its annotation says {by(record["size"])}. Use '
            'the images that the annotations were made for.'
        )
        return
    seg_map = record.get('seg_map_path')
    if seg_map and not _is_coco(dataset) and os.path.isfile(seg_map):
        # The loader in the config applies options such as ``reduce_zero_label``, so it gives the
        # labels that the loss sees.
        loader = next(_steps(cfg, 'LoadAnnotations'), dict(type='LoadAnnotations'))
        yield from _map_errors(record, size, dataset, loader, num_classes)


def _decode(path: str) -> tuple[int, int]:
    """Decode an image, and return its height and width after EXIF rotation, as in mmcv.

    Pillow raises an error for a truncated file, where OpenCV would fill up the missing part.
    """
    with Image.open(path) as image:
        width, height = ImageOps.exif_transpose(image).size  # decodes the image
    return height, width


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
            f'{path} has the labels {some(sorted(wrong))}: {num_classes} classes are 0 to '
            f'{num_classes - 1}, and {dataset.ignore_index} is ignored. Convert the maps, or set '
            "metainfo and reduce_zero_label of the data set, and num_classes of the model's heads, "
            'to match them.'
        )


def _count(records: Sequence[Record]) -> dict[str, int]:
    counts = dict(images=len(records))
    if records and 'annotations' in records[0]:
        counts['annotations'] = sum(record['annotations'] for record in records)
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


def _reason(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())}'
