import pytest
from mmengine.config import Config

from acmix_mm.preflight.data_paths import check_data, leaf_datasets, missing_data


def coco(root, **kwargs):
    kwargs.update(ann_file='ann.json', data_prefix=dict(img='img/'))
    return dict(type='CocoDataset', data_root=str(root), **kwargs)


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'img').mkdir()
    (tmp_path / 'img' / '1.jpg').touch()
    (tmp_path / 'ann.json').touch()
    return tmp_path


def test_nothing_is_missing(root):
    cfg = Config(
        dict(
            train_dataloader=dict(dataset=coco(root)),
            test_dataloader=dict(dataset=coco('nowhere')),
            val_evaluator=[dict(type='CocoMetric', ann_file=str(root / 'ann.json'))],
        )
    )
    assert missing_data(cfg, 'train', 'val') == []
    check_data(cfg, 'train', 'val')


@pytest.mark.parametrize(('removed', 'path'), [('img/1.jpg', 'img/'), ('ann.json', 'ann.json')])
def test_a_removed_file_or_an_emptied_folder_is_missing(root, removed, path):
    (root / removed).unlink()
    cfg = Config(dict(val_dataloader=dict(dataset=coco(root))))
    (missing,) = missing_data(cfg, 'val')
    assert missing.path == f'{root}/{path}'


def test_wrapped_datasets_are_found():
    wrapped = dict(
        type='MultiImageMixDataset',
        dataset=dict(
            type='ConcatDataset',
            datasets=[dict(type='A'), dict(type='RepeatDataset', times=2, dataset=dict(type='B'))],
        ),
    )
    assert [dataset['type'] for dataset in leaf_datasets(wrapped)] == ['A', 'B']


def test_a_path_is_named_once_with_its_place():
    cfg = Config(
        dict(
            train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=coco('nowhere'))),
            val_dataloader=dict(dataset=coco('nowhere')),
            val_evaluator=dict(type='CocoMetric', ann_file='elsewhere.json'),
        )
    )
    found = {(missing.path, missing.used_by) for missing in missing_data(cfg, 'train', 'val')}
    assert found == {
        ('nowhere/ann.json', 'train_dataloader, ann_file'),
        ('nowhere/img/', 'train_dataloader, data_prefix.img'),
        ('elsewhere.json', 'val_evaluator, ann_file'),
    }


def test_remote_data_is_left_to_its_storage():
    petrel = dict(backend='petrel')
    cfg = Config(
        dict(
            train_dataloader=dict(dataset=coco('s3://bucket/coco')),
            val_dataloader=dict(dataset=coco('nowhere', backend_args=petrel)),
            val_evaluator=dict(ann_file='nowhere.json', backend_args=petrel),
        )
    )
    assert missing_data(cfg, 'train', 'val') == []


@pytest.mark.parametrize(
    ('dataset', 'path'),
    [
        (dict(data_root='root', data_prefix='train'), 'root/train'),
        (dict(data_root='root'), 'root'),
        (dict(data_root='root', split='val'), 'root/val'),
        (dict(ann_file='/abs/ann.txt', data_root='root'), '/abs/ann.txt'),
        (dict(data_prefix=dict(img_path='images', seg_map_path=None)), 'images'),
    ],
)
def test_other_forms_of_datasets(dataset, path):
    cfg = Config(dict(test_dataloader=dict(dataset=dict(type='D', **dataset))))
    assert [missing.path for missing in missing_data(cfg, 'test')] == [path]


def test_message_says_what_where_and_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config(dict(train_dataloader=dict(dataset=coco('data/coco'))))
    with pytest.raises(FileNotFoundError) as error:
        check_data(cfg, 'train')
    for part in (
        'data/coco/ann.json',
        'data/coco/img/',
        str(tmp_path),
        'cocodataset.org',
        'make demo',
    ):
        assert part in str(error.value)


def test_a_config_can_say_where_its_data_come_from():
    cfg = Config(dict(data_source='ask Bob', val_dataloader=dict(dataset=coco('nowhere'))))
    with pytest.raises(FileNotFoundError, match='get the data: ask Bob'):
        check_data(cfg, 'val')
