"""What the built package holds, and how mmengine finds the configs in it."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import PathDistribution
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from acmix_mm.version import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def built_package(tmp_path_factory) -> Path:
    """The package as a wheel would hold it."""
    folder = tmp_path_factory.mktemp('build')
    command = [sys.executable, 'setup.py', '--quiet', 'build_py', '--build-lib', str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder / 'acmix_mm'


@pytest.fixture(scope='module')
def unpacked_sdist(tmp_path_factory) -> Path:
    """The source distribution, made from a copy of the checkout and unpacked."""
    folder = tmp_path_factory.mktemp('sdist')
    checkout = folder / 'checkout'
    not_source = shutil.ignore_patterns(
        '.*', 'build', 'dist', 'work_dirs', '__pycache__', '*.so', '*.egg-info', 'tests', 'docs'
    )
    shutil.copytree(ROOT, checkout, ignore=not_source)
    run_setup('--quiet', 'sdist', '--dist-dir', str(folder), cwd=checkout).check_returncode()
    (file,) = folder.glob(f'acmix?mm-{__version__}.tar.gz')  # with '-' in older setuptools
    with tarfile.open(file) as archive:
        archive.extractall(folder)
    return folder / file.name.removesuffix('.tar.gz')


def run_setup(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Runs ``setup.py``; without ``ACMIX_BUILD_KERNELS``, which CI sets, unless it is named."""
    inherited = {key: value for key, value in os.environ.items() if key != 'ACMIX_BUILD_KERNELS'}
    return subprocess.run(
        [sys.executable, 'setup.py', *arguments],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
    )


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
    if find_spec('mmpretrain') is None:
        files = [file for file in files if file.parent.name != 'imagenet']  # its bases are missing
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


def test_only_the_package_is_shipped(built_package):
    assert [path.name for path in built_package.parent.iterdir()] == ['acmix_mm']
    others = {name for name in files_below(built_package) if not name.startswith('.mim')}
    assert {name for name in others if not name.endswith('.py')} == {'py.typed'}


def test_sdist_holds_what_a_build_needs(unpacked_sdist, tmp_path):
    for folder in ('acmix_mm', 'benchmarks', 'configs', 'tools'):
        expected = {
            name
            for name in files_below(ROOT / folder)
            if not name.startswith('.mim') and not name.endswith('.so')
        }
        assert files_below(unpacked_sdist / folder) == expected
    assert (unpacked_sdist / 'acmix_mm/ops/csrc/kernels/kernels_avx2.cpp').exists()

    built = run_setup('--quiet', 'build_py', '--build-lib', str(tmp_path), cwd=unpacked_sdist)
    assert built.returncode == 0, built.stderr
    assert files_below(tmp_path / 'acmix_mm/.mim/configs') == files_below(ROOT / 'configs')


def test_metadata_asks_pip_for_no_library_with_compiled_dependants(unpacked_sdist):
    distribution = PathDistribution(unpacked_sdist / 'acmix_mm.egg-info')
    assert distribution.version == __version__
    required = [line for line in distribution.requires if 'extra ==' not in line]
    assert 'numpy' in required
    assert not [line for line in required if line.startswith(('torch', 'mmcv', 'mmengine'))]
    assert set(distribution.metadata.get_all('Provides-Extra')) == {
        'det',
        'seg',
        'export',
        'pretrain',
        'test',
        'dev',
    }


def test_pip_would_change_nothing_in_the_environment(unpacked_sdist):
    """It resolves all requirements; those that are installed already need no network."""
    command = ['install', '--dry-run', '--no-build-isolation', '--quiet', '--report', '-', '.']
    result = subprocess.run(
        [sys.executable, '-m', 'pip', '--disable-pip-version-check', *command],
        cwd=unpacked_sdist,
        env={**os.environ, 'ACMIX_BUILD_KERNELS': '0'},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    planned = {item['metadata']['name'] for item in json.loads(result.stdout)['install']}
    assert planned == {'acmix-mm'}


@pytest.fixture
def without_torch(tmp_path) -> dict[str, str]:
    """An environment in which torch cannot be imported, as in pip's isolated build."""
    (tmp_path / 'torch.py').write_text("raise ImportError('hidden by a test')")
    return {'PYTHONPATH': str(tmp_path)}


def test_version_is_read_without_torch(without_torch):
    result = run_setup('--version', **without_torch)
    assert result.stdout.strip() == __version__, result.stderr


def test_missing_torch_is_an_error_on_request(without_torch):
    reason = 'the build environment has no torch (hidden by a test)'
    skipped = run_setup('--version', **without_torch)
    assert f'building without its C++ kernels: {reason}' in skipped.stderr
    required = run_setup('--version', ACMIX_BUILD_KERNELS='1', **without_torch)
    assert required.returncode != 0
    assert required.stderr.splitlines()[-1] == (
        'acmix-mm: ACMIX_BUILD_KERNELS=1, but the C++ kernels cannot be built: '
        f'{reason}; use pip install --no-build-isolation'
    )


@pytest.mark.parametrize(
    ('choice', 'succeeds', 'message'),
    [
        ('', True, 'building without its C++ kernels: '),
        ('0', True, ''),
        ('1', False, 'ACMIX_BUILD_KERNELS=1, but the C++ kernels cannot be built: '),
        ('yes', False, "ACMIX_BUILD_KERNELS is 'yes'; set it to 0 or 1, or not at all"),
    ],
)
def test_failed_compiler(tmp_path, choice, succeeds, message):
    result = run_setup(
        *('build_ext', '--build-lib', str(tmp_path), '--build-temp', str(tmp_path)),
        ACMIX_BUILD_KERNELS=choice,
        CXX=shutil.which('false'),
    )
    assert (result.returncode == 0) == succeeds, result.stderr
    assert message in result.stderr
    assert bool(message) == ('acmix-mm: ' in result.stderr)
    assert not list(tmp_path.rglob('*.so'))
