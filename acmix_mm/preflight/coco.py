# SPDX-License-Identifier: Apache-2.0
"""Read annotation files in COCO's format, and find the defects that pycocotools does not.

Training on a file with such a defect ends with an exception that does not name the entry, or does
not notice it and learns from wrong boxes and masks. All numbers are looked at before pycocotools
sees them: a polygon with one coordinate of 1e8, or with a NaN, would take it tens of gigabytes.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Entry = Mapping[str, Any]

MOST_PIXELS = 2**30  # of an image that OpenCV decodes
_LARGEST = 1e12  # anything above is not a coordinate, an area or a size in pixels
_MARGIN = 10  # how far outside the image a polygon may reach, in sizes of the image
_REMAKE = 'Save it as UTF-8 without a byte order mark, or download or unpack it again.'
_CORRECT = 'Correct or remove them.'
_BOX = 'Boxes must be [x, y, width, height] in pixels.'
_MASK = 'Masks must be polygons or RLE in the format of COCO.'
_EMPTY = 'Training leaves out boxes without an area: correct or remove them.'


class BadAnnotations(ValueError):
    """A file is not an annotation file. The message names the file and how to mend it."""


class Defect(NamedTuple):
    """What is wrong with an entry of a file.

    Attributes:
        fault: The fault, with the wrong value.
        mend: How to mend it, as sentences. Defects with the same mend are of the same kind.
    """

    fault: str
    mend: str

    @property
    def is_published(self) -> bool:
        """Whether COCO itself, as it is published, has entries with this defect."""
        return self.mend == _EMPTY


def read_coco(file: str, annotated: bool = True) -> dict[str, Any]:
    """Read an annotation file, and check its structure.

    Args:
        file: Path of the file.
        annotated: Whether the file must have annotations. Default: True.

    Returns:
        dict[str, Any]: The content, whose ``'images'``, ``'annotations'`` and ``'categories'`` are
        lists of dictionaries. Those of images and categories are complete.

    Raises:
        BadAnnotations: The file has another structure.
    """
    if not os.path.isfile(file):  # opening a named pipe would wait for ever
        raise BadAnnotations(f'{file} is not a file.')
    try:
        # pycocotools reads text, and json would guess the encoding of bytes.
        content = json.loads(Path(file).read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise BadAnnotations(f'{file} is not valid JSON: {error}. {_REMAKE}') from error
    keys = ('images', 'annotations', 'categories')
    if not isinstance(content, dict):
        raise BadAnnotations(
            f'{file} contains a {type(content).__name__}, where COCO has an object with the lists '
            f'{", ".join(keys)}. Export the annotations in the format of COCO.'
        )
    if not annotated:
        content.setdefault('annotations', [])
    for key in keys:
        entries = content.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            found = 'there is none' if entries is None else f'it is {_short(entries)}'
            raise BadAnnotations(
                f'{file} has no list of {key} ({found}). Export the annotations in the format of '
                'COCO.'
            )
    for what, key, check in (
        ('image', 'images', _image_defect),
        ('category', 'categories', _category_defect),
    ):
        for _, message in _grouped(content[key], what, file, check):
            raise BadAnnotations(message)
    return content


def defects(
    content: Mapping[str, list[Entry]], file: str, needs_mask: bool = False, is_test: bool = False
) -> Iterator[tuple[Defect, str]]:
    """Yield the kinds of defects of the entries of an annotation file.

    Args:
        content: Content of the file, from :func:`read_coco`.
        file: Path of the file, for messages.
        needs_mask: Whether each annotation must have a mask. Default: False.
        is_test: Whether the annotations are those of an evaluation. Default: False.

    Yields:
        tuple[Defect, str]: The first defect of each kind, and a message with the file, the entries
        that have it, the fault and how to mend it.

    Examples:
        >>> image = dict(id=1, file_name='a.jpg', height=8, width=8)
        >>> annotation = dict(id=5, image_id=1, category_id=1, bbox=[2, 2, 4], area=16)
        >>> content = dict(images=[image], annotations=[annotation], categories=[])
        >>> for _, message in defects(dict(content, categories=[dict(id=1, name='cat')]), 'a.json'):
        ...     print(message)
        a.json: annotation 5: its bbox is [2, 2, 4]. Boxes must be [x, y, width, height] in pixels.
    """
    sizes = {image['id']: (image['height'], image['width']) for image in content['images']}
    categories = {category['id'] for category in content['categories']}

    def check(annotation: Entry) -> Defect | None:
        for key, ids in (('image_id', sizes), ('category_id', categories)):
            if not _is_id(annotation.get(key)) or annotation[key] not in ids:
                value = _short(annotation.get(key))
                return Defect(f'its {key} {value} is not defined in the file', _CORRECT)
        if not _is_id(annotation.get('id')):
            return Defect(f'its id is {_short(annotation.get("id"))}', 'Give each its own id.')
        size = sizes[annotation['image_id']]
        return (
            _box_defect(annotation, size)
            or _mask_defect(annotation, size, needs_mask)
            or _crowd_defect(annotation, is_test)
        )

    yield from _grouped(content['annotations'], 'annotation', file, check)
    for key, name in (('images', 'id'), ('annotations', 'id'), ('categories', 'id'),
                      ('categories', 'name')):  # fmt: skip
        counts = Counter(entry[name] for entry in content[key] if _is_id(entry.get(name)))
        repeated = [value for value, count in counts.items() if count > 1]
        if repeated:
            fault = f'{len(repeated)} {name}s occur more than once in {key}: {some(repeated)}'
            defect = Defect(fault, f'Give each its own {name}.')
            yield defect, f'{file}: {defect.fault}. {defect.mend}'


def _grouped(
    entries: Sequence[Entry], what: str, file: str, check: Callable[[Entry], Defect | None]
) -> Iterator[tuple[Defect, str]]:
    found: dict[str, list[tuple[str, Defect]]] = {}
    for number, entry in enumerate(entries):
        defect = check(entry)
        if defect:
            name = str(entry['id']) if _is_id(entry.get('id')) else f'number {number}'
            found.setdefault(defect.mend, []).append((name, defect))
    for cases in found.values():
        name, defect = cases[0]
        others = ', '.join(other for other, _ in cases[1:4])
        more = f' (and {len(cases) - 1} more: {others}{", ..." if len(cases) > 4 else ""})'
        yield (
            defect,
            f'{file}: {what} {name}{more if len(cases) > 1 else ""}: {defect.fault}. {defect.mend}',
        )


def _image_defect(image: Entry) -> Defect | None:
    mend = 'Each must have an id, a file_name, and its height and width in pixels.'
    if not _is_id(image.get('id')):
        return Defect(f'its id is {_short(image.get("id"))}', mend)
    name = image.get('file_name')
    if not isinstance(name, str) or not name or '\0' in name:
        return Defect(f'its file_name is {_short(name)}', mend)
    for key in ('height', 'width'):
        if not isinstance(image.get(key), int) or image[key] < 1:
            return Defect(f'its {key} is {_short(image.get(key))}', mend)
    if image['height'] * image['width'] > MOST_PIXELS:
        return Defect(f'its size is {by((image["height"], image["width"]))} pixels', mend)
    return None


def _category_defect(category: Entry) -> Defect | None:
    for key, kinds in (('id', int | str), ('name', str)):
        if not isinstance(category.get(key), kinds):
            return Defect(
                f'its {key} is {_short(category.get(key))}', 'Each must have an id and a name.'
            )
    return None


def _box_defect(annotation: Entry, size: tuple[int, int]) -> Defect | None:
    box: Any = annotation.get('bbox')
    area: Any = annotation.get('area')
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return Defect(f'its bbox is {_short(box)}', _BOX)
    if not _is_number(area):
        return Defect(
            f'its area is {_short(area)}', 'The area in pixels is needed: add it to the file.'
        )
    x, y, width, height = box
    if width < 0 or height < 0:
        return Defect(f'its bbox is {box}', _BOX)
    if x >= size[1] or y >= size[0] or x + width < 0 or y + height < 0:
        return Defect(f'its bbox {box} is outside the image of {by(size)} pixels', _BOX)
    if width == 0 or height == 0 or area <= 0:
        return Defect(f'its bbox is {box}, and its area {area}', _EMPTY)
    return None


def _mask_defect(annotation: Entry, size: tuple[int, int], needed: bool) -> Defect | None:
    mask = annotation.get('segmentation')
    if not mask and (needed or mask not in (None, [], {})):
        return Defect(
            f'its segmentation is {_short(mask)}, but the config loads masks',
            'Add the masks, or use a config without masks.',
        )
    try:
        if isinstance(mask, list):
            _check_polygons(mask, size)
        elif mask:
            _check_rle(mask, size)
    except ValueError as error:
        return Defect(f'its mask cannot be decoded: {error}', _MASK)
    return None


def _check_polygons(polygons: list, size: tuple[int, int]) -> None:
    reach = _MARGIN * max(size)
    for polygon in polygons:
        if not isinstance(polygon, list):
            raise ValueError(f'{_short(polygon)} is not a list of coordinates')
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f'a polygon has {len(polygon)} numbers, not x and y of 3 points')
        try:
            points = np.asarray(polygon)
        except (ValueError, OverflowError):
            points = np.asarray(polygon, object)
        # Comparisons with NaN are false.
        if points.dtype.kind not in 'iuf' or not (
            -reach <= points.min() and points.max() <= size[0] + size[1] + reach
        ):
            raise ValueError(
                f'a polygon has the coordinates {_short(polygon)}, in an image of {by(size)} pixels'
            )


def _check_rle(rle: Any, size: tuple[int, int]) -> None:
    counts = rle.get('counts') if isinstance(rle, dict) else None
    if not isinstance(rle, dict) or not isinstance(counts, list | str):
        raise ValueError(f'it is {_short(rle)}, neither polygons nor an RLE with size and counts')
    if rle.get('size') != list(size):
        given = rle.get('size')
        is_pair = isinstance(given, list) and len(given) == 2
        raise ValueError(
            f'it has {by(given) if is_pair else _short(given)} pixels, its image {by(size)}'  # type: ignore[arg-type]
        )
    if isinstance(counts, str):
        runs = run_lengths(counts)
    elif all(isinstance(count, int) for count in counts):
        runs = np.asarray(counts, object)
    else:
        raise ValueError(f'its counts are {_short(counts)}')
    if len(runs) and runs.min() < 0:
        raise ValueError(f'it has a run of {runs.min()} pixels')
    if runs.sum() != size[0] * size[1]:
        raise ValueError(
            f'its counts add up to {runs.sum()} pixels, but the image has {size[0] * size[1]}'
        )


def run_lengths(counts: str) -> np.ndarray:
    """Decode the counts of a compressed RLE.

    The numbers are written in base 32, the last digit first, with a sign, and from the fourth on as
    differences to the number two before.

    Args:
        counts: The string that COCO's API writes.

    Returns:
        np.ndarray: Lengths of the runs of background and foreground, in int64.

    Raises:
        ValueError: The string is cut short, or has characters or numbers that cannot occur.

    Examples:
        >>> run_lengths('PPT:0').tolist()
        [331776, 0]
    """
    digits = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    if len(digits) == 0 or digits.min() < 0 or digits.max() > 63:
        raise ValueError(f'its counts {_short(counts)} are no compressed RLE')
    is_last = digits < 32
    if not is_last[-1]:
        raise ValueError('its counts end in the middle of a number')
    ends = np.flatnonzero(is_last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError('its counts have a number of more than 32 bits')
    places = np.arange(len(digits)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((digits & 31) << (5 * places), starts)
    numbers -= np.where(digits[ends] & 16, np.int64(1) << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _crowd_defect(annotation: Entry, is_test: bool) -> Defect | None:
    if is_test and annotation.get('iscrowd') not in (0, 1):
        return Defect(
            f'its iscrowd is {_short(annotation.get("iscrowd"))}',
            "COCO's evaluation needs iscrowd: set it to 0, or to 1 for a group of objects.",
        )
    return None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -_LARGEST < value < _LARGEST


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str)


def some(items: Collection, most: int = 3) -> str:
    """Return the first items as text, followed by the number of the others."""
    shown = ', '.join(map(str, list(items)[:most]))
    return f'{shown} and {len(items) - most} more' if len(items) > most else shown


def by(size: Iterable[Any]) -> str:
    """Return a height and a width as text, the width first."""
    height, width = size
    return f'{width}x{height}'


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:50]}...'
