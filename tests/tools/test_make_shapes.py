"""The data set that tools/dataset/make_shapes.py generates."""

import json

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO


@pytest.fixture(scope='module')
def make_shapes(tool):
    return tool('dataset/make_shapes.py')


@pytest.mark.parametrize(('split', 'count'), [('train', 8), ('val', 4)])
def test_annotations_agree_with_masks_and_semantic_maps(shapes, split, count):
    coco = COCO(str(shapes / f'annotations/instances_{split}.json'))
    assert len(coco.imgs) == count
    assert len(coco.anns) > count
    for image_id, image in coco.imgs.items():
        map_name = image['file_name'].replace('.jpg', '.png')
        semantic = cv2.imread(str(shapes / 'semantic' / split / map_name), -1)
        picture = cv2.imread(str(shapes / split / image['file_name']))
        assert picture.shape == (*semantic.shape, 3) == (image['height'], image['width'], 3)
        painted = np.zeros_like(semantic)
        for ann in coco.loadAnns(coco.getAnnIds(image_id)):
            mask = coco.annToMask(ann) > 0
            assert not painted[mask].any(), 'visible parts never overlap'
            painted[mask] = ann['category_id']
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert ann['bbox'] == box
            assert ann['area'] == mask.sum() > 0
        assert np.array_equal(painted, semantic)


def test_same_call_same_files_and_splits_apart(shapes, make_shapes, tmp_path):
    make_shapes.main(['--out', str(tmp_path), '--train', '2', '--val', '1'])
    for name in ('train/000002.jpg', 'semantic/val/000001.png'):
        assert (tmp_path / name).read_bytes() == (shapes / name).read_bytes()
    assert (shapes / 'train/000001.jpg').read_bytes() != (shapes / 'val/000001.jpg').read_bytes()
    small, large = (
        json.loads((folder / 'annotations/instances_train.json').read_text())['annotations']
        for folder in (tmp_path, shapes)
    )
    assert small == [ann for ann in large if ann['image_id'] <= 2]


def test_another_seed_gives_other_images(shapes, make_shapes, tmp_path):
    make_shapes.main(['--out', str(tmp_path), '--train', '1', '--val', '1', '--seed', '1'])
    name = 'train/000001.jpg'
    assert (tmp_path / name).read_bytes() != (shapes / name).read_bytes()


def test_most_of_every_shape_can_be_seen(make_shapes):
    overlaps = 0
    for seed in range(40):
        _, owner, labels = make_shapes.draw(np.random.default_rng(seed), 128)
        areas = np.bincount(owner.ravel(), minlength=len(labels) + 1)[1:]
        # The smallest shape is a star of radius 0.1 * 128: 0.45 * 5 * r^2 * sin(36 deg).
        smallest = make_shapes.MIN_VISIBLE * 0.45 * 5 * 12.8**2 * np.sin(np.pi / 5)
        assert len(areas) == len(labels)
        assert (areas > 0.9 * smallest).all()
        in_front = cv2.dilate(owner, np.ones((3, 3), np.uint8))
        overlaps += (in_front != owner)[owner > 0].any()
    assert overlaps > 10
