"""Dataclasses as the lines of CSV files."""

from dataclasses import dataclass

import pytest

from acmix_mm.runtime.rows import read_rows, write_rows


@dataclass(frozen=True)
class Run:
    name: str
    seed: int
    value: float


def test_rows_are_what_was_written(tmp_path):
    rows = [Run('a, b', 1, 0.1), Run('', -2, 1e-9)]
    write_rows(tmp_path / 'new' / 'rows.csv', rows, Run)
    assert read_rows(tmp_path / 'new' / 'rows.csv', Run) == rows
    write_rows(tmp_path / 'none.csv', [], Run)
    assert (tmp_path / 'none.csv').read_text() == 'name,seed,value\n'
    assert read_rows(tmp_path / 'none.csv', Run) == []


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        ('', 'rows.csv has the columns none; needed are name, seed, value'),
        ('name,value\na,1\n', 'rows.csv has the columns name, value; needed'),
        ('name,seed,value\na,1,2\na,x,2\n', 'rows.csv, line 3: invalid literal'),
        ('name,seed,value\na,1\n', 'rows.csv, line 2: '),
    ],
)
def test_files_that_are_none(tmp_path, text, says):
    (tmp_path / 'rows.csv').write_text(text)
    with pytest.raises(ValueError, match=says):
        read_rows(tmp_path / 'rows.csv', Run)
