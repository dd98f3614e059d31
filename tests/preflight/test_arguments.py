import os
from argparse import ArgumentParser, ArgumentTypeError

import pytest

from acmix_mm.preflight.arguments import (
    check_launcher,
    check_output_file,
    check_output_folder,
    existing_file,
    whole_number,
)


@pytest.mark.parametrize('text', ['-3', '0', '1.5', 'many', '', '101', '1e2', 'nan'])
def test_planted_number(text, capsys):
    parser = ArgumentParser()
    parser.add_argument('--samples', type=whole_number(1, 100))
    with pytest.raises(SystemExit):
        parser.parse_args([f'--samples={text}'])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f'argument --samples: must be a whole number from 1 to 100, got {text!r}')
    assert parser.parse_args(['--samples', '100']).samples == 100


@pytest.mark.parametrize('make', [lambda path: None, lambda path: path.mkdir()])
def test_planted_file_that_is_not_there(make, tmp_path):
    make(tmp_path / 'a.yml')
    with pytest.raises(ArgumentTypeError, match='there is no file'):
        existing_file(str(tmp_path / 'a.yml'))


@pytest.mark.parametrize('path', ['', '/proc/nothing', '/dev/null', '/dev/null/a', 'file', 'a\0b'])
def test_planted_output_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match=r'^--work-dir ') as error:
        check_output_folder(path, '--work-dir')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('path', ['', '.', '..', 'folder', 'new/', '/proc/x.pkl', 'file/a.pkl'])
def test_planted_output_file(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').touch()
    (tmp_path / 'folder').mkdir()
    with pytest.raises(ValueError, match=r'^--out ') as error:
        check_output_file(path, '--out')
    assert '\n' not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_planted_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match='Permission denied'):
        check_output_folder(tmp_path / 'a', '--work-dir')


def test_output_that_can_be_written(tmp_path):
    check_output_folder(tmp_path / 'a/b', '--work-dir')
    assert list((tmp_path / 'a/b').iterdir()) == []
    (tmp_path / 'kept.pkl').write_text('kept')
    for name in ('kept.pkl', 'c/new.pkl'):
        check_output_file(tmp_path / name, '--out')
    assert (tmp_path / 'kept.pkl').read_text() == 'kept'
    assert list((tmp_path / 'c').iterdir()) == []


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm', 'mpi'])
def test_planted_launcher(launcher, monkeypatch):
    for name in [name for name in os.environ if name.startswith(('SLURM', 'OMPI', 'MASTER'))]:
        monkeypatch.delenv(name)
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(ValueError, match=f'--launcher {launcher}: .* was not started with'):
        check_launcher(launcher)
    check_launcher('none')


def test_launcher_that_started_the_process(monkeypatch):
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(name, '1')
    check_launcher('pytorch')
