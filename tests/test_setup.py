"""What the built package holds, and how mmengine finds the configs in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def built_package(tmp_path_factory) -> Path:
    """The package as a wheel would hold it."""
    folder = tmp_path_factory.mktemp('build')
    command = [sys.executable, 'setup.py', '--quiet', 'build_py', '--build-lib', str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder / 'acmix_mm'


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob('*.*') if path.suffix != '.pyc'}


@pytest.mark.parametrize('name', ['configs', 'tools'])
def test_configs_and_tools_are_shipped(built_package, name):
    shipped = files_below(built_package / '.mim' / name)
    assert shipped
    assert shipped == files_below(ROOT / name)


def test_model_index_lists_every_metafile():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    metafiles = {str(path.relative_to(ROOT)) for path in ROOT.glob('configs/**/metafile.yml')}
    assert set(index['Import']) == metafiles


def test_mmengine_finds_shipped_configs(built_package):
    files = sorted((ROOT / 'configs').glob('[!_]*/*.py'))
    one_of_each_folder = {file.parent: file for file in files}.values()
    assert one_of_each_folder
    names = [f'acmix_mm::{file.relative_to(ROOT / "configs")}' for file in one_of_each_folder]
    code = (
        'import sys, acmix_mm\n'
        'from mmengine.config import Config\n'
        'from mmengine.hub import get_config\n'
        'for name in sys.argv[1:]:\n'
        '    config = get_config(name)\n'
        "    assert 'acmix_mm/.mim/configs' in config.filename, config.filename\n"
        "    derived = Config.fromstring(f'_base_ = {name!r}', '.py')\n"
        '    assert derived.model == config.model\n'
    )
    result = subprocess.run(
        [sys.executable, '-c', code, *names],
        env={**os.environ, 'PYTHONPATH': str(built_package.parent)},
        cwd=built_package,  # not the checkout, which would come first
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
