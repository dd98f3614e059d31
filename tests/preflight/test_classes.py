"""Configs whose heads and data sets have different numbers of classes are refused."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from acmix_mm.preflight.classes import check_classes, numbers_of_classes

ROOT = Path(__file__).parents[2]
DEMO = 'configs/demo/mask-rcnn_resnet26-acmix_fpn_shapes.py'
PANOPTIC = dict(
    type='BaseDataset',
    metainfo=dict(
        classes=('cat', 'dog', 'sky'), thing_classes=('cat', 'dog'), stuff_classes=('sky',)
    ),
)


def errors(model, names=('cat', 'dog', 'cow'), **dataset):
    """Return the lines of the message for a data set with these classes."""
    dataset = dict(type='BaseDataset', metainfo=dict(classes=names)) | dataset
    cfg = Config(dict(model=model, train_dataloader=dict(dataset=dataset)))
    try:
        check_classes(cfg, 'train', 'val', 'test')
    except ValueError as error:
        title, *lines = str(error).splitlines()
        assert title == 'The classes of the data do not fit this config:'
        return lines
    return []


def test_every_config_of_ours_fits():
    paths = [p for p in sorted((ROOT / 'configs').rglob('*.py')) if '_base_' not in p.parts]
    checked = 0
    for path in paths:
        if 'imagenet' in path.parts:  # its base may be missing
            continue
        cfg = Config.fromfile(path)
        assert numbers_of_classes(cfg.model), path
        check_classes(cfg, 'train', 'val', 'test')
        checked += 1
    assert checked == 56


@pytest.mark.parametrize(
    ('model', 'places'),
    [
        (dict(bbox_head=dict(type='RetinaHead', num_classes=80)), ['bbox_head.num_classes']),
        (
            dict(roi_head=dict(bbox_head=[dict(num_classes=3), dict(num_classes=80)])),
            ['roi_head.bbox_head.1.num_classes'],
        ),
        (
            dict(roi_head=dict(bbox_head=dict(num_classes=80), mask_head=dict(num_classes=80))),
            ['roi_head.bbox_head.num_classes', 'roi_head.mask_head.num_classes'],
        ),
        (
            dict(decode_head=dict(num_classes=3), auxiliary_head=[dict(num_classes=150)]),
            ['auxiliary_head.0.num_classes'],
        ),
        (dict(head=dict(num_classes=1000)), ['head.num_classes']),
        (dict(detector=dict(bbox_head=dict(num_classes=1))), ['detector.bbox_head.num_classes']),
    ],
)
def test_heads_with_other_numbers(model, places):
    lines = errors(model)
    assert [line.split(' is ')[0].strip() for line in lines] == [f'model.{p}' for p in places]
    assert 'but the BaseDataset of train_dataloader has 3 classes (cat, dog, cow). ' in lines[0]
    assert f'Set model.{places[0]}=3, or metainfo=dict(classes=(...))' in lines[0]


@pytest.mark.parametrize(
    'model',
    [
        dict(roi_head=dict(bbox_head=dict(num_classes=3), semantic_head=dict(num_classes=183))),
        dict(rpn_head=dict(type='RPNHead', num_classes=1), bbox_head=dict(num_classes=3)),
        dict(rpn_head=dict(bbox_head=dict(num_classes=1))),
        dict(auxiliary_head=dict(type='mmseg.STDCHead', num_classes=2)),
        dict(bbox_head=dict(type='GroundingDINOHead', num_classes=256)),
        dict(backbone=dict(num_classes=1000), bbox_head=dict(type='RetinaHead')),
        dict(panoptic_head=dict(num_things_classes=3, num_stuff_classes=0)),
    ],
)
def test_numbers_that_are_right_or_not_those_of_the_data(model):
    assert errors(model) == []


def test_things_and_stuff():
    head = dict(num_things_classes=2, num_stuff_classes=1)
    model = dict(panoptic_head=head, roi_head=dict(bbox_head=dict(num_classes=2)))
    assert errors(model, **PANOPTIC) == []
    swapped = dict(panoptic_head=dict(num_things_classes=1, num_stuff_classes=2))
    things, stuff = errors(swapped, **PANOPTIC)
    assert 'model.panoptic_head.num_things_classes is 1' in things
    assert 'has 2 classes (cat, dog)' in things
    assert 'model.panoptic_head.num_stuff_classes is 2' in stuff
    assert 'has 1 classes (sky)' in stuff


@DATASETS.register_module()
class OfTwoClasses(BaseDataset):
    METAINFO = dict(classes=('cat', 'dog'))


@pytest.mark.parametrize('kind', ['OfTwoClasses', OfTwoClasses])
def test_classes_of_the_class_of_the_data_set(kind):
    model = dict(decode_head=dict(num_classes=19))
    (line,) = errors(model, type=kind, metainfo=None)
    assert 'the OfTwoClasses of train_dataloader has 2 classes (cat, dog)' in line
    assert errors(dict(decode_head=dict(num_classes=2)), type=kind, metainfo=None) == []


@pytest.mark.parametrize('dataset', [dict(type='NoDataset'), dict(type='BaseDataset')])
def test_unknown_classes_are_not_checked(dataset):
    assert errors(dict(decode_head=dict(num_classes=19)), metainfo={}, **dataset) == []


def test_a_tuple_without_comma(tmp_path):
    (line,) = errors(dict(bbox_head=dict(num_classes=1)), names='balloon')
    assert "is 'balloon', neither a list of names nor a file" in line
    assert "classes=('balloon',)" in line
    (tmp_path / 'names.txt').write_text('balloon\n')
    assert errors(dict(bbox_head=dict(num_classes=1)), names=str(tmp_path / 'names.txt')) == []


def test_a_tracker_uses_one_of_the_classes():
    model = dict(detector=dict(bbox_head=dict(num_classes=1)))
    assert errors(model, type='mmdet.MOTChallengeDataset') == []


def test_data_sets_in_wrappers_are_checked_once():
    inner = dict(type='BaseDataset', metainfo=dict(classes=('cat',)))
    concat = dict(type='ConcatDataset', datasets=[inner, inner])
    lines = errors(dict(head=dict(num_classes=9)), type='RepeatDataset', dataset=concat)
    assert len(lines) == 1


@pytest.mark.parametrize('name', ['train.py', 'dataset/check.py'])
def test_tools_refuse(tool, shapes, name):
    options = [f'data_root={shapes}', 'model.roi_head.mask_head.num_classes=80']
    with pytest.raises(SystemExit, match=r'(?s)do not fit .*mask_head.num_classes is 80') as error:
        tool(name).main([str(ROOT / DEMO), '--cfg-options', *options])
    assert 'the CocoDataset of val_dataloader has 4 classes (disc, square, triangle, ...)' in str(
        error.value
    )


def test_classes_as_an_argument_of_the_data_set():
    head = dict(head=dict(num_classes=2))
    assert errors(head, metainfo={}, classes=('cat', 'dog')) == []
    (line,) = errors(head, metainfo={}, classes=('cat', 'dog', 'cow'))
    assert 'model.head.num_classes is 2' in line


def test_preprocessor_beside_the_model():
    dataset = dict(type='BaseDataset', metainfo=dict(classes=('cat', 'dog')))
    loader = dict(train_dataloader=dict(dataset=dataset))
    check_classes(Config(dict(data_preprocessor=dict(num_classes=2), **loader)), 'train')
    with pytest.raises(ValueError, match=r'data_preprocessor\.num_classes is 1000'):
        check_classes(Config(dict(data_preprocessor=dict(num_classes=1000), **loader)), 'train')
