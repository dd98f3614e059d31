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


@pytest.mark.parametrize(
    ('options', 'reason'),
    [
        (['--train', '-1'], 'argument --train: must be a whole number of at least 1'),
        (['--val', '0'], 'argument --val: must be a whole number of at least 1'),
        (['--size', '0'], 'argument --size: must be a whole number from 16 to 8192'),
        (['--size', '-5'], 'argument --size'),
        (['--size', '1'], 'argument --size'),
        (['--size', '1000000'], 'argument --size'),
        (['--seed', '-1'], 'argument --seed: must be a whole number of at least 0'),
        (['--out', ''], '--out needs the path of a folder'),
        (['--out', '/dev/null'], '--out /dev/null: nothing can be written there'),
    ],
)
def test_planted_options_leave_the_set_that_is_there(
    shapes, make_shapes, options, reason, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    files = {path: path.stat().st_mtime_ns for path in shapes.rglob('*')}
    with pytest.raises(SystemExit) as end:
        make_shapes.main(['--out', str(shapes), *options])
    assert end.value.code not in (0, None)
    assert reason in (str(end.value) + capsys.readouterr().err)
    assert {path: path.stat().st_mtime_ns for path in shapes.rglob('*')} == files
    assert list(tmp_path.iterdir()) == []


def test_planted_full_disk(make_shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, 'imwrite', lambda path, image: False)
    with pytest.raises(SystemExit, match=r'000001\.jpg cannot be written'):
        make_shapes.main(['--out', str(tmp_path), '--train', '1', '--val', '1'])
