"""The table in docs/model_zoo.md is what the tool writes."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOL = runpy.run_path(str(ROOT / 'tools' / 'analysis' / 'model_zoo.py'))
PAGE = (ROOT / 'docs' / 'model_zoo.md').read_text()


def test_every_model_is_in_the_table():
    lines = PAGE.split(TOOL['BEGIN'])[1].split(TOOL['END'])[0].removeprefix(TOOL['HEADER'])
    names = [line.split(' | ')[0].removeprefix('| ') for line in lines.splitlines()]
    assert names == [model.name for model in TOOL['ZOO']]
    assert len(names) == 14


@pytest.mark.parametrize('name', ['ResNet-26', 'SAN-10', 'PVT-T', 'Swin-T'])
def test_counts_are_up_to_date(name):
    model = next(model for model in TOOL['ZOO'] if model.name == f'{name}-ACmix')
    assert TOOL['row'](model) in PAGE


def test_page_without_marks_is_refused():
    with pytest.raises(ValueError, match='once each'):
        TOOL['update']('# A page without a table\n')
