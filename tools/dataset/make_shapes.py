# SPDX-License-Identifier: Apache-2.0
"""Generate the shapes data set: a small data set in COCO format for demos and tests.

    python tools/dataset/make_shapes.py [--out data/shapes]

Every image shows overlapping, textured discs, squares, triangles and stars on a textured
background. It has instance annotations (COCO JSON) and a semantic map::

    data/shapes/annotations/instances_{train,val}.json    visible part of each shape, as RLE
    data/shapes/{train,val}/000001.jpg ...                images
    data/shapes/semantic/{train,val}/000001.png ...       0 = background, then category ids

An image depends only on the seed, its split and its number. The same command therefore gives the
same files, and a larger data set begins with the images of a smaller one.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from acmix_mm.atomic_write import write_atomically
from acmix_mm.preflight.arguments import check_output_folder, whole_number

CLASSES = ('disc', 'square', 'triangle', 'star')
SPLITS = ('train', 'val')
SIZES = (16, 8192)  # smallest and largest image
MIN_VISIBLE = 0.5  # visible fraction of a shape, after the shapes in front of it are drawn


def outline(kind: str, center: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Return the polygon of a shape, in pixels.

    Args:
        kind: One of ``CLASSES``.
        center: Center ``(x, y)`` of the circle through the shape's corners.
        radius: Radius of the circle.
        angle: Rotation in radians. The shape is upright at angle 0.

    Returns:
        np.ndarray: Corners of the polygon, ``(N, 2)``.
    """
    corners = {'disc': 64, 'square': 4, 'triangle': 3, 'star': 10}[kind]
    radii = np.full(corners, radius)
    if kind == 'star':
        radii[1::2] *= 0.45
    # An upright square has a horizontal side at the top; the other shapes have a corner there.
    steps = np.arange(corners) + (0.5 if kind == 'square' else 0)
    angles = angle - np.pi / 2 + steps * 2 * np.pi / corners
    return center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def texture(rng: np.random.Generator, size: int, color: np.ndarray, contrast: float) -> np.ndarray:
    """Return a random texture: gradient, stripes, checks or clouds.

    Args:
        rng: Random number generator.
        size: Height and width of the texture.
        color: Mean color, around which the texture varies.
        contrast: Largest difference from the mean color.

    Returns:
        np.ndarray: The texture, ``(size, size, 3)`` in float32.
    """
    y, x = np.mgrid[:size, :size].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    period = rng.uniform(0.04, 0.11) * size
    pattern = rng.choice(['gradient', 'stripes', 'checks', 'clouds'])
    if pattern == 'gradient':
        wave = 2 * (along - along.min()) / np.ptp(along) - 1
    elif pattern == 'stripes':
        wave = np.sin(along * 2 * np.pi / period)
    elif pattern == 'checks':
        wave = 2 * ((np.floor(along / period) + np.floor(across / period)) % 2) - 1
    else:
        coarse = rng.uniform(-1, 1, (10, 10)).astype(np.float32)
        wave = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return (color + wave[..., None] * rng.uniform(-contrast, contrast, 3)).astype(np.float32)


def color_unlike(rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    """Return a random color that differs clearly from another one."""
    while True:
        color = rng.uniform(30, 225, 3)
        if np.linalg.norm(color - other) > 100:
            return color


def draw(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Draw one image, from the rearmost shape to the foremost.

    A shape that would hide too much of an earlier one, or of which too much is outside the image,
    is not drawn. So every shape that is drawn is annotated, and every annotated shape is visible.

    Args:
        rng: Random number generator.
        size: Height and width of the image.

    Returns:
        tuple[np.ndarray, np.ndarray, list[int]]: The image, ``(size, size, 3)`` in uint8; the map
        of shapes, ``(size, size)``, with 0 for the background and ``i`` for the i-th shape; and the
        class index of every shape.
    """
    ground = rng.uniform(30, 225, 3)
    image = texture(rng, size, ground, contrast=25)
    owner = np.zeros((size, size), np.uint8)
    labels: list[int] = []
    full_areas: list[int] = []
    for _ in range(rng.binomial(7, 0.5)):
        label = int(rng.integers(len(CLASSES)))
        radius = rng.uniform(0.1, 0.25) * size
        center, angle = rng.uniform(0, size, 2), rng.uniform(-0.4, 0.4)
        corners = outline(CLASSES[label], center, radius, angle)
        mask = cv2.fillPoly(np.zeros_like(owner), [np.rint(corners).astype(np.int32)], 1) > 0
        fill = texture(rng, size, color_unlike(rng, ground), contrast=40)
        # Area of the whole polygon by the shoelace formula; part of it may be outside the image.
        x, y = corners.T
        full = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
        visible = np.bincount(owner[~mask], minlength=len(labels) + 1)[1:]
        if mask.sum() < MIN_VISIBLE * full or np.any(visible < MIN_VISIBLE * np.array(full_areas)):
            continue
        labels.append(label)
        full_areas.append(full)
        owner[mask] = len(labels)
        image[mask] = fill[mask]
    image += rng.normal(0, 6, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), owner, labels


def annotate(owner: np.ndarray, labels: list[int], image_id: int, first_id: int) -> list[dict]:
    """Return the COCO annotations of one image, with area and box measured on the mask."""
    annotations = []
    for i, label in enumerate(labels):
        rle = mask_utils.encode(np.asfortranarray(owner == i + 1))
        annotations.append(
            dict(
                id=first_id + i,
                image_id=image_id,
                category_id=label + 1,
                bbox=mask_utils.toBbox(rle).tolist(),
                area=int(mask_utils.area(rle)),
                iscrowd=0,
                segmentation=dict(size=rle['size'], counts=rle['counts'].decode()),
            )
        )
    return annotations


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image, and raise an OSError where OpenCV only returns false."""
    if not cv2.imwrite(str(path), image):
        raise OSError(f'{path} cannot be written: the disk may be full')


def make_split(out: Path, split: str, count: int, size: int, seed: int) -> None:
    """Write the images, the semantic maps and, at the end, the annotation file of one split."""
    for folder in (out / split, out / 'semantic' / split, out / 'annotations'):
        folder.mkdir(parents=True, exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id in range(1, count + 1):
        rng = np.random.default_rng([seed, SPLITS.index(split), image_id])
        image, owner, labels = draw(rng, size)
        name = f'{image_id:06d}'
        semantic = np.array([0] + [label + 1 for label in labels], np.uint8)[owner]
        write_image(out / split / f'{name}.jpg', image)
        write_image(out / 'semantic' / split / f'{name}.png', semantic)
        images.append(dict(id=image_id, file_name=f'{name}.jpg', height=size, width=size))
        annotations += annotate(owner, labels, image_id, first_id=len(annotations) + 1)
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    write_atomically(
        out / 'annotations' / f'instances_{split}.json',
        json.dumps(dict(images=images, annotations=annotations, categories=categories)),
    )


def main(argv: list[str] | None = None) -> None:
    """Generate both splits."""
    parser = argparse.ArgumentParser(description='Generate the shapes data set.')
    parser.add_argument('--out', default='data/shapes', help='output folder (default: data/shapes)')
    for split, number in zip(SPLITS, (400, 100), strict=True):
        parser.add_argument(
            f'--{split}',
            type=whole_number(1),
            default=number,
            help=f'number of images of {split} (default: {number})',
        )
    parser.add_argument(
        '--size',
        type=whole_number(*SIZES),
        default=256,
        help='height and width of the images (default: 256)',
    )
    parser.add_argument(
        '--seed', type=whole_number(0), default=0, help='seed of the random generator (default: 0)'
    )
    args = parser.parse_args(argv)
    try:
        check_output_folder(args.out, '--out')
        for split in SPLITS:
            make_split(Path(args.out), split, getattr(args, split), args.size, args.seed)
            print(f'{args.out}/{split}: {getattr(args, split)} images')
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == '__main__':
    main()
