"""Defects planted in an annotation file: each gives one message with the file, entry and fault."""

import json
import os
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image
from pycocotools import mask

from acmix_mm.preflight.coco import BadAnnotations, read_coco, run_lengths
from acmix_mm.preflight.data_content import inspect_dataset
from acmix_mm.runtime.config import move_data_root

ROOT = Path(__file__).parents[2]
DETECTOR = 'configs/demo/mask-rcnn_resnet26-acmix_fpn_shapes.py'
ANN = 'annotations/instances_train.json'
DELETE = object()


@pytest.fixture
def root(shapes, tmp_path):
    """Copy the shapes data set, so that a test can damage it."""
    return Path(shutil.copytree(shapes, tmp_path / 'shapes'))


@cache
def read_config():
    return Config.fromfile(ROOT / DETECTOR)


def inspect(root, split='train', **options):
    cfg = move_data_root(read_config(), str(root))
    init_default_scope(cfg.default_scope)
    return inspect_dataset({**cfg[f'{split}_dataloader'].dataset, **options})


def edit(file, key, number=0, **values):
    """Change one entry of an annotation file."""
    content = json.loads(file.read_text())
    content[key][number].update(values)
    for name in [name for name, value in values.items() if value is DELETE]:
        del content[key][number][name]
    file.write_text(json.dumps(content))


def rle(counts, size=(256, 256)):
    return dict(size=list(size), counts=counts)


WHOLE = mask.encode(np.asfortranarray(np.eye(256, dtype=np.uint8)))['counts'].decode()
NAN, INF = float('nan'), float('inf')
SQUARE = [1, 1, 9, 1, 9, 9]

BOXES = {
    'missing': DELETE,
    'null': None,
    'text': '1 2 3 4',
    'of strings': ['1', '2', '3', '4'],
    'of 3 numbers': [1, 2, 3],
    'of 5 numbers': [1, 2, 3, 4, 5],
    'object': {'x': 1},
    'nested': [[1, 2, 3, 4]],
    'zero width': [1, 2, 0, 4],
    'zero height': [1, 2, 3, 0],
    'negative width': [9, 2, -3, 4],
    'NaN': [1, NAN, 3, 4],
    'infinite': [1, 2, INF, 4],
    'minus infinite': [-INF, 2, 3, 4],
    'huge integer': [1, 2, 3, 10**400],
    'booleans': [True, True, True, True],
    'outside': [300, 0, 9, 9],
    'left of the image': [-20, 0, 9, 9],
}
MASKS = {
    'missing': DELETE,
    'null': None,
    'empty list': [],
    'empty object': {},
    'number': 3,
    'text': 'polygon',
    'flat polygon': SQUARE,
    'no points': [[]],
    '2 points': [[1, 2, 3, 4]],
    'odd': [[*SQUARE, 5]],
    'of strings': [['1', '1', '9', '1', '9', '9']],
    'of one string': [[1, 1, 9, 1, 9, '9']],
    'one good and one short': [SQUARE, [1, 2]],
    'polygon and RLE': [SQUARE, rle([65536])],
    'nested': [[SQUARE]],
    'null in it': [[*SQUARE[:5], None]],
    'NaN': [[NAN, 1, 2, 3, 4, 5]],
    'infinite': [[INF, 1, 2, 3, 4, 5]],
    '1e8': [[1e8, 1, 2, 3, 4, 5]],
    '-1e8': [[-1e8, 1, 2, 3, 4, 5]],
    'huge integer': [[10**400, 1, 2, 3, 4, 5]],
    'RLE without size': dict(counts=[65536]),
    'RLE without counts': dict(size=[256, 256]),
    'RLE with null': rle(None),
    'RLE of another size': rle([25600], (256, 100)),
    'RLE with a size of 3': rle([65536], (256, 256, 1)),
    'RLE with text as size': dict(size='256', counts=[65536]),
    'RLE too short': rle([10, 20]),
    'RLE too long': rle([65530, 7]),
    'RLE empty': rle([]),
    'RLE negative': rle([70000, -4464]),
    'RLE of strings': rle(['65536']),
    'RLE of floats': rle([65536.0]),
    'RLE huge': rle([10**30]),
    'compressed empty': rle(''),
    'compressed cut': rle(WHOLE[:-7]),
    'compressed cut in a number': rle('P'),
    'compressed overflow': rle('o' * 40 + '0'),
    'compressed too long': rle(WHOLE + WHOLE[-4:]),
    'compressed with spaces': rle('PP T:0'),
    'compressed with umlauts': rle('PPTä'),
    'compressed with high characters': rle('PP~~'),
}
OTHERS = {
    'no area': dict(area=DELETE),
    'area null': dict(area=None),
    'area text': dict(area='9'),
    'area NaN': dict(area=NAN),
    'area zero': dict(area=0),
    'no id': dict(id=DELETE),
    'id null': dict(id=None),
    'id a list': dict(id=[1]),
    'id twice': dict(id=2),
    'no image_id': dict(image_id=DELETE),
    'image_id unknown': dict(image_id=99),
    'image_id text': dict(image_id='1'),
    'image_id a list': dict(image_id=[1]),
    'no category_id': dict(category_id=DELETE),
    'category_id unknown': dict(category_id=0),
    'category_id an object': dict(category_id={}),
}
ANNOTATIONS = {
    **{f'bbox {name}': dict(bbox=value) for name, value in BOXES.items()},
    **{f'mask {name}': dict(segmentation=value) for name, value in MASKS.items()},
    **OTHERS,
}


@pytest.mark.parametrize('values', ANNOTATIONS.values(), ids=ANNOTATIONS)
def test_planted_in_an_annotation(root, values):
    edit(root / ANN, 'annotations', **values)
    (error,) = inspect(root).errors
    (key,) = values
    assert str(root / ANN) in error
    assert '\n' not in error
    assert len(error) < 500
    assert ('mask' if key == 'segmentation' else key) in error
    assert 'annotation' in error


ENTRIES = {
    'image without id': ('images', dict(id=DELETE)),
    'image with a list as id': ('images', dict(id=[])),
    'image id twice': ('images', dict(id=2)),
    'image without file_name': ('images', dict(file_name=DELETE)),
    'file_name null': ('images', dict(file_name=None)),
    'file_name empty': ('images', dict(file_name='')),
    'file_name number': ('images', dict(file_name=5)),
    'file_name with a zero byte': ('images', dict(file_name='a\0.jpg')),
    'height missing': ('images', dict(height=DELETE)),
    'height text': ('images', dict(height='256')),
    'height zero': ('images', dict(height=0)),
    'width negative': ('images', dict(width=-1)),
    'width float': ('images', dict(width=25.6)),
    'width huge': ('images', dict(width=10**9)),
    'category without id': ('categories', dict(id=DELETE)),
    'category id a list': ('categories', dict(id=[1])),
    'category without name': ('categories', dict(name=DELETE)),
    'category name null': ('categories', dict(name=None)),
}


@pytest.mark.parametrize(('key', 'values'), ENTRIES.values(), ids=ENTRIES)
def test_planted_in_another_entry(root, key, values):
    edit(root / ANN, key, **values)
    errors = inspect(root).errors
    (name,) = values
    assert str(root / ANN) in errors[0]
    assert name in errors[0]


def test_planted_category_twice(root):
    content = json.loads((root / ANN).read_text())
    content['categories'].append(dict(id=9, name='star'))
    (root / ANN).write_text(json.dumps(content))
    (error,) = inspect(root).errors
    assert 'occur more than once in categories: star' in error


CONTENTS = {
    'empty file': b'',
    'a list': b'[]',
    'null': b'null',
    'HTML': b'<html>not found</html>',
    'only images': b'{"images": []}',
    'annotations null': b'{"images": [], "annotations": null, "categories": []}',
    'images an object': b'{"images": {}, "annotations": [], "categories": []}',
    'image a number': b'{"images": [3], "annotations": [], "categories": []}',
    'random bytes': bytes(range(256)),
    'deeply nested': b'[' * 100000,
    'UTF-16': '{"images": [], "annotations": [], "categories": []}'.encode('utf-16'),
    'UTF-8 with a mark': '\ufeff{"images": [], "annotations": [], "categories": []}'.encode(),
    'UTF-32': '{"images": [], "annotations": [], "categories": []}'.encode('utf-32'),
}


@pytest.mark.parametrize('content', CONTENTS.values(), ids=CONTENTS)
def test_planted_content(root, content):
    (root / ANN).write_bytes(content)
    (error,) = inspect(root).errors
    assert error.startswith(str(root / ANN))
    assert 'COCO' in error or 'UTF-8' in error


def test_planted_empty_training_set(root):
    content = json.loads((root / ANN).read_text())
    (root / ANN).write_text(json.dumps(dict(content, annotations=[])))
    (error,) = inspect(root).errors
    assert 'has no annotations of the classes of the config (disc, square, triangle' in error
    assert inspect(root, test_mode=True).errors == []


def test_planted_evaluation_without_iscrowd(root):
    file = root / 'annotations/instances_val.json'
    edit(file, 'annotations', iscrowd=DELETE)
    (error,) = inspect(root, 'val').errors
    assert "COCO's evaluation needs iscrowd" in error


def test_masks_are_needed_only_where_the_config_loads_them(root):
    edit(root / ANN, 'annotations', segmentation=DELETE)
    pipeline = [dict(type='LoadAnnotations', with_bbox=True)]
    assert inspect(root, pipeline=pipeline).errors == []


def test_defects_of_a_kind_are_one_error(root):
    for number in range(6):
        edit(root / ANN, 'annotations', number, bbox=[1, 2, number])
    (error,) = inspect(root).errors
    assert 'annotation 1 (and 5 more: 2, 3, 4, ...): its bbox is [1, 2, 0]. Boxes must' in error


def test_coco_as_it_is_published_has_boxes_without_area(root):
    edit(root / ANN, 'annotations', bbox=[1, 2, 3, 0])
    (root / ANN).rename(root / 'annotations/instances_train2017.json')
    report = inspect(root, ann_file='annotations/instances_train2017.json')
    assert report.errors == []
    assert any('its bbox is [1, 2, 3, 0]' in note for note in report.notes)


def link(image):
    image.unlink()
    image.symlink_to('/mnt/unmounted/000002.jpg')


def pipe(image):
    image.unlink()
    os.mkfifo(image)


def folder(image):
    image.unlink()
    image.mkdir()


def bomb(image):
    Image.new('1', (15000, 15000)).save(image, 'png')


def only_for_pillow(image):
    Image.new('F', (256, 256)).save(image, 'im')


@pytest.mark.parametrize('damage', [link, pipe, folder, bomb, only_for_pillow])
def test_planted_image(root, damage):
    damage(root / 'train/000002.jpg')
    errors = inspect(root).errors
    assert len(errors) == 1
    assert 'train/000002.jpg' in errors[0]


def test_planted_pipe_as_annotation_file(root):
    pipe(root / ANN)
    with pytest.raises(BadAnnotations, match='is not a file'):
        read_coco(str(root / ANN))


def test_files_of_macos_are_a_note(root):
    (root / 'train/._000001.jpg').write_bytes(b'\0\5\x16\7')
    report = inspect(root)
    assert report.errors == []
    (note,) = report.notes
    assert f'{root}/train has 1 files of macOS' in note


@pytest.mark.parametrize('seed', range(50))
def test_run_lengths_are_those_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 300, 2)
    bitmap = rng.random((height, width)) < rng.random() ** 3
    counts = mask.encode(np.asfortranarray(bitmap, np.uint8))['counts'].decode()
    pixels = np.concatenate([[False], bitmap.flatten(order='F')])
    edges = np.flatnonzero(np.diff(pixels))
    expected = np.diff(np.concatenate([[0], edges, [bitmap.size]]))
    if expected[-1] == 0:
        expected = expected[:-1]
    assert run_lengths(counts).tolist() == expected.tolist()
