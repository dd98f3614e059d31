"""Broken copies of a small data set: each gives one error that says what is wrong and where."""

import json
import shutil
import sys
from pathlib import Path

import cv2
import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, init_default_scope
from real_images import COCO, needs_coco

from acmix_mm.preflight.data_content import distinct_datasets, inspect_dataset
from acmix_mm.preflight.known_datasets import KNOWN
from acmix_mm.runtime.config import move_data_root

ROOT = Path(__file__).parents[2]
DETECTOR = 'configs/demo/mask-rcnn_resnet26-acmix_fpn_shapes.py'
SEGMENTOR = 'configs/demo/sem-fpn_resnet26-acmix_shapes.py'


@pytest.fixture
def root(shapes, tmp_path):
    """Copy the shapes data set, so that a test can damage it."""
    return Path(shutil.copytree(shapes, tmp_path / 'shapes'))


def training_set(config, root):
    cfg = move_data_root(Config.fromfile(ROOT / config), str(root))
    init_default_scope(cfg.default_scope)
    return cfg.train_dataloader.dataset


def inspect(config, root, **options):
    return inspect_dataset({**training_set(config, root), **options})


def test_sound_data(shapes):
    number = len(
        json.loads((shapes / 'annotations/instances_train.json').read_text())['annotations']
    )
    report = inspect(DETECTOR, shapes)
    assert report.summary == f'8 images, {number} annotations, 4 classes, 8 decoded'
    assert report.errors == report.notes == []
    report = inspect(SEGMENTOR, shapes)
    assert report.summary == '8 images, 5 classes, 8 decoded'
    assert report.errors == report.notes == []


def remove(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2000])


def replace(path):
    path.write_text('<html>not found</html>')


def crop(path):
    cv2.imwrite(str(path), cv2.imread(str(path), -1)[:100])


def color(path):
    cv2.imwrite(str(path), cv2.imread(str(path)))


def paint(path, label=5):
    labels = cv2.imread(str(path), -1)
    labels[3, 5] = label
    cv2.imwrite(str(path), labels)


def change(key, i, **values):
    """Return a function that changes one entry of the annotation file."""

    def edit(path):
        content = json.loads(path.read_text())
        content[key][i].update(values)
        path.write_text(json.dumps(content))

    return edit


def rename_images(path):
    path.write_text(path.read_text().replace('"images"', '"pictures"'))


IMAGE = 'train/000003.jpg'
MAP = 'semantic/train/000003.png'
ANN = 'annotations/instances_train.json'
NARROW = dict(size=[256, 100], counts='PPT:0')


@pytest.mark.parametrize(
    ('file', 'damage', 'parts'),
    [
        (IMAGE, remove, ['1 of 8 files are not there', IMAGE, 'again']),
        (IMAGE, truncate, [IMAGE, 'decoded', 'truncated']),
        (IMAGE, replace, [IMAGE, 'decoded']),
        (IMAGE, crop, [IMAGE, '256x100', '256x256']),
        (ANN, truncate, [ANN, 'is not valid JSON', 'again']),
        (ANN, rename_images, [ANN, 'no list of images']),
        (ANN, change('categories', 2, name='tri'), ['no category triangle', 'square, tri, star']),
        (
            ANN,
            change('annotations', 0, category_id=9),
            ['annotation 1', 'category_id 9 is not defined'],
        ),
        (
            ANN,
            change('annotations', 1, image_id=99),
            ['annotation 2', 'image_id 99 is not defined'],
        ),
        (ANN, change('annotations', 0, bbox=[300, 0, 9, 9]), ['annotation 1', 'outside']),
        (ANN, change('annotations', 0, segmentation=NARROW), ['annotation 1', '100x256']),
        (ANN, change('annotations', 0, segmentation=[['a', 'b']]), ['annotation 1', 'decoded']),
    ],
)
def test_planted_in_detection_data(root, file, damage, parts):
    damage(root / file)
    (error,) = inspect(DETECTOR, root).errors
    assert all(part in error for part in parts), error


@pytest.mark.parametrize(
    ('file', 'damage', 'parts'),
    [
        (IMAGE, truncate, [IMAGE, 'decoded']),
        (MAP, remove, ['1 of 8 files are not there', MAP, 'again']),
        (MAP, truncate, [MAP, 'decoded']),
        (MAP, crop, [MAP, '(100, 256)', '(256, 256)']),
        (MAP, color, ['(256, 256, 3)', 'one channel']),
        (MAP, paint, [MAP, 'labels 5', '5 classes are 0 to 4', '255 is ignored']),
    ],
)
def test_planted_in_segmentation_data(root, file, damage, parts):
    damage(root / file)
    (error,) = inspect(SEGMENTOR, root).errors
    assert all(part in error for part in parts), error


def test_labels_are_those_that_training_sees(root):
    paint(root / 'semantic/train/000005.png', 255)
    assert inspect(SEGMENTOR, root).errors == []
    pipeline = [dict(type='LoadAnnotations')]
    classes = dict(classes=('disc', 'square', 'triangle', 'star'))
    zero_ignored = dict(reduce_zero_label=True, metainfo=classes, pipeline=pipeline)
    assert inspect(SEGMENTOR, root, **zero_ignored).errors == []
    assert len(inspect(SEGMENTOR, root, metainfo=classes).errors) > 1


def test_labels_of_a_data_set_that_does_not_name_its_classes(root):
    paint(root / MAP, 5)
    unnamed = {**training_set(SEGMENTOR, root), 'metainfo': {}}
    assert inspect_dataset(unnamed).errors == []
    (error,) = inspect_dataset(unnamed, num_classes=5).errors
    assert f'{MAP} has the labels 5: 5 classes are 0 to 4, and 255 is ignored' in error
    assert inspect_dataset(unnamed, num_classes=6).errors == []


def test_no_images(root):
    (error,) = inspect(SEGMENTOR, root, img_suffix='.tif').errors
    assert 'no images' in error
    assert 'img_suffix' in error


def test_categories_that_are_left_out_are_a_note(root):
    report = inspect(DETECTOR, root, metainfo=dict(classes=('disc', 'star')))
    assert report.errors == []
    (note,) = report.notes
    assert 'square, triangle' in note


def test_only_a_sample_is_decoded_but_every_file_is_looked_up(root):
    truncate(root / 'train/000002.jpg')
    (root / 'train/000007.jpg').unlink()
    seen = []
    report = inspect_dataset(
        training_set(DETECTOR, root), 2, lambda sample: [seen.append(len(sample)), *sample][1:]
    )
    (error,) = report.errors
    assert '000007.jpg' in error
    assert seen == [2]


def test_fewer_images_than_a_known_data_set_has_are_a_note(root):
    (root / 'annotations/instances_train.json').rename(
        root / 'annotations/instances_train2017.json'
    )
    report = inspect(DETECTOR, root, ann_file='annotations/instances_train2017.json')
    assert report.errors == []
    (note,) = report.notes
    assert '118287 images, 860001 annotations' in note


@pytest.mark.parametrize(
    ('name', 'path', 'images'),
    [
        ('CocoDataset', 'data/coco/annotations/instances_val2017.json', 5000),
        ('ADE20KDataset', 'data/ade/ADEChallengeData2016/images/training', 20210),
        ('CityscapesDataset', 'leftImg8bit/train/', 2975),
        ('PascalVOCDataset', '/data/VOCdevkit/VOC2012/ImageSets/Segmentation/aug.txt', 9118),
        ('ImageNet', 'data/imagenet/val/', 50000),
    ],
)
def test_known_counts_are_found_by_path(name, path, images):
    assert KNOWN[name].counts_of(['', None, path])['images'] == images
    assert KNOWN[name].counts_of(['', 'elsewhere/minival']) == {}


@DATASETS.register_module()
class FolderOfOne(BaseDataset):
    METAINFO = dict(classes=('cat', 'dog'))

    def load_data_list(self):
        return [dict(img_path='nowhere/1.jpg', gt_label=label) for label in (0, 1, 2)]


def test_labels_of_classification():
    report = inspect_dataset(dict(type='FolderOfOne'))
    missing, wrong = report.errors
    assert '3 of 3 files are not there: nowhere/1.jpg' in missing
    assert 'labels 2 are out of range: the 2 classes are 0 to 1' in wrong


def test_remote_storage_is_left_alone():
    report = inspect_dataset(dict(type='CocoDataset', backend_args=dict(backend='petrel')))
    assert report.errors == []
    assert 'not inspected' in report.notes[0]


def test_a_data_set_is_inspected_once():
    cfg = Config.fromfile(ROOT / DETECTOR)
    names = list(distinct_datasets(cfg, 'train', 'val', 'test'))
    assert [name.split(',')[0] for name in names] == ['train_dataloader', 'val_dataloader']


@pytest.fixture(scope='module')
def check(tool):
    return tool('dataset/check.py').main


def test_command(check, root, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    check([str(ROOT / DETECTOR), '--cfg-options', f'data_root={root}'])
    out, err = capsys.readouterr()
    assert 'can be used' in out
    assert '4/4' in err
    truncate(root / 'val/000001.jpg')
    (root / 'train/000001.jpg').unlink()
    with pytest.raises(SystemExit, match='Errors: 2'):
        check([str(ROOT / DETECTOR), '--cfg-options', f'data_root={root}'])
    assert capsys.readouterr().out.count('error: ') == 2
    with pytest.raises(SystemExit, match='nowhere/annotations/instances_train'):
        check([str(ROOT / DETECTOR), '--cfg-options', 'data_root=nowhere'])


def test_planted_options(check, capsys, tmp_path):
    with pytest.raises(SystemExit):
        check([str(ROOT / DETECTOR), '--samples', '-3'])
    assert 'argument --samples: must be a whole number of at least 0' in capsys.readouterr().err
    config = tmp_path / 'model_only.py'
    config.write_text("model = dict(type='RetinaNet')\n")
    with pytest.raises(SystemExit, match=r'model_only\.py has no data sets'):
        check([str(config)])


@needs_coco
def test_real_images(check, capsys):
    check([
        str(ROOT / 'configs/mask_rcnn_acmix.py'), '--samples', '8',
        '--cfg-options', f'data_root={COCO}',
    ])  # fmt: skip
    out = capsys.readouterr().out
    assert '80 classes, 8 decoded' in out
    assert 'subset' in out
    assert 'can be used' in out
