"""The tables in docs/model_zoo.md are what the tool writes."""

import runpy
from pathlib import Path

import pytest
from mmengine.fileio import load

from acmix_mm.runtime.markdown import replace_between_marks

ROOT = Path(__file__).parents[2]
TOOL = runpy.run_path(str(ROOT / 'tools' / 'analysis' / 'model_zoo.py'))
PAGE = (ROOT / 'docs' / 'model_zoo.md').read_text()


def test_every_backbone_is_in_the_table():
    table = PAGE.split('<!-- sizes: written by')[1].split('<!-- sizes: end -->')[0]
    _, header, _, *rows = table.splitlines()
    assert header == f'| {" | ".join(TOOL["SIZES_HEADER"])} |'
    names = [row.split(' | ')[0].removeprefix('| ') for row in rows]
    assert names == [model.name for model in TOOL['ZOO']]
    assert len(names) == 14


@pytest.mark.parametrize('name', ['ResNet-26', 'SAN-10', 'PVT-T', 'Swin-T'])
def test_counts_are_up_to_date(name):
    model = next(model for model in TOOL['ZOO'] if model.name == f'{name}-ACmix')
    assert f'| {" | ".join(TOOL["size_row"](model))} |\n' in PAGE


def test_tables_of_models_are_up_to_date():
    writer = 'tools/analysis/model_zoo.py'
    assert replace_between_marks(PAGE, 'models', writer, TOOL['models_tables']()) == PAGE


def test_every_model_of_the_metafiles_is_in_a_table():
    index = load(ROOT / 'model-index.yml')['Import']
    models = [model for metafile in index for model in load(ROOT / metafile)['Models']]
    tables = TOOL['models_tables']()
    assert len(tables.split('\n| [')) - 1 == len(models) > 50
    assert all(f'(../{model["Config"]})' in tables for model in models)


def test_row_of_a_model():
    model = dict(Name='a', Config='b/a.py', Metadata=dict(Backbone='B', Epochs=12))
    assert TOOL['model_row'](model) == ['[a](../b/a.py)', 'B', '12 epochs', '', '', '']
    model['Results'] = [
        dict(Task='Object Detection', Metrics={'box AP': 38.0}),
        dict(Task='Instance Segmentation', Metrics={'mask AP': 34.5}),
    ]
    model['Published'] = dict(Source='https://c.d', Metrics={'box AP': 37.9})
    model['Plain Backbone'] = dict(Source='https://e.f', Metrics={'box AP': 37.0, 'mask AP': 34.0})
    cells = [
        'box AP 38.0, mask AP 34.5',
        '[box AP 37.9](https://c.d)',
        '[box AP 37.0, mask AP 34.0](https://e.f)',
    ]
    assert TOOL['model_row'](model)[-3:] == cells
