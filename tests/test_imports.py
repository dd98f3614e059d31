"""What may import what, and what `import acmix_mm` says when a library is missing or unfit."""

import ast
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path

import pytest
from fresh_process import run_python

from acmix_mm.preflight import libraries
from acmix_mm.preflight.libraries import MMCV, MMDET, MMENGINE, MMPRETRAIN, MMSEG, TORCH, Library

PACKAGE = Path(__file__).parents[1] / 'acmix_mm'
STANDARD_LIBRARY = set(sys.stdlib_module_names)
# The arrows: which rooms of acmix_mm, and which libraries, each room may import. A room is a folder
# or a file of the package. None of them imports mmdet, mmseg or mmpretrain.
CORE = {'ops', 'checkpoints', 'layers', 'registry', 'backbones'}
ARROWS = {
    '__init__': (
        {'layers', 'ops', 'backbones', 'hooks', 'optim', 'registry', 'preflight', 'version'},
        set(),
    ),
    'version': (set(), set()),
    'atomic_write': (set(), set()),
    'registry': ({'preflight'}, {'mmengine'}),
    'ops': ({'ops'}, {'torch', 'triton'}),
    'checkpoints': ({'checkpoints', 'atomic_write'}, {'torch', 'safetensors', 'numpy'}),
    'layers': (
        {'layers', 'ops', 'checkpoints', 'registry'},
        {'torch', 'mmengine', 'mmcv'},
    ),
    'backbones': (CORE, {'torch', 'mmengine', 'mmcv'}),
    'optim': ({'registry'}, {'torch', 'mmengine'}),
    'complexity': ({'ops'}, {'torch'}),
    'preflight': (
        {'preflight', 'checkpoints'},
        {'torch', 'mmengine', 'numpy', 'packaging', 'PIL'},
    ),
    'hooks': ({'hooks', 'layers', 'atomic_write'}, {'torch', 'mmengine', 'numpy'}),
    'runtime': (
        {'runtime', 'hooks', 'preflight', 'checkpoints', 'atomic_write'},
        {'torch', 'mmengine'},
    ),
}


def imported_modules(file: Path) -> set[str]:
    """Absolute names of all modules that a file's import statements name."""
    package = '.'.join(file.relative_to(PACKAGE.parent).parent.parts)
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name('.' * node.level + (node.module or ''), package)
            names.update(f'{module}.{alias.name}' for alias in node.names)
    return names


def package_files() -> list[Path]:
    return [file for file in sorted(PACKAGE.rglob('*.py')) if '.mim' not in file.parts]


def test_every_room_has_arrows():
    rooms = {room_of(file) for file in package_files()}
    assert rooms == set(ARROWS)


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix('.py')


@pytest.mark.parametrize('file', package_files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_import_arrows_go_one_way(file):
    parts, libraries = ARROWS[room_of(file)]
    for name in imported_modules(file):
        top, *rest = name.split('.')
        if top == 'acmix_mm':
            assert rest[0] in parts, f'{file} imports {name}'
        else:
            assert top in libraries | STANDARD_LIBRARY, f'{file} imports {name}'


def test_core_imports_without_mmdet_and_mmseg():
    modules = []
    for file in package_files():
        parts = file.relative_to(PACKAGE.parent).with_suffix('').parts
        modules.append('.'.join(parts).removesuffix('.__init__'))
    assert len(modules) > len(ARROWS)
    modules = [name for name in modules if 'triton' not in name]  # needs the library of that name
    code = (
        'import importlib, sys\n'
        'sys.modules.update(mmdet=None, mmseg=None, mmpretrain=None)\n'
        f'for name in {modules}: importlib.import_module(name)\n'
        'from acmix_mm.registry import MODELS\n'
        "assert MODELS.get('ACmixResNet')\n"
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_operators_and_layers_need_torch_alone():
    run_python(
        """
import sys
sys.modules.update(dict.fromkeys(['mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'cv2']))
import torch
import acmix_mm.ops
from acmix_mm.layers import ACmix, SpatialReductionACmix, WindowACmix

layer, x = ACmix(8, 16, stride=2), torch.rand(1, 8, 9, 10, requires_grad=True)
layer.init_weights()
with acmix_mm.ops.use_backend('reference'):
    expected = layer(x)
torch.testing.assert_close(layer(x), expected)
layer(x).sum().backward()
assert WindowACmix(12, 3)(torch.rand(1, 8, 8, 12)).shape == (1, 8, 8, 12)
assert SpatialReductionACmix(12, 3)(torch.rand(1, 8, 8, 12)).shape == (1, 8, 8, 12)
try:
    ACmix(8, 8, init_cfg=dict(type='Xavier'))
except ValueError as error:
    assert 'needs mmengine' in str(error)
else:
    raise AssertionError('init_cfg was ignored')
"""
    )


@pytest.fixture
def installed(monkeypatch):
    """Fakes what is installed: a dict of distributions and versions; empty to start with."""
    versions: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in versions:
            raise libraries.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(libraries.metadata, 'version', version)
    monkeypatch.setattr(libraries, 'find_spec', lambda name: None)
    return versions


@pytest.mark.parametrize('library', [TORCH, MMENGINE, MMCV], ids=lambda library: library.module)
def test_missing_library_is_named_with_the_command_that_installs_it(installed, library):
    with pytest.raises(ImportError) as error:
        libraries.check_library(library, required=True)
    message = str(error.value)
    assert f'acmix-mm needs {library.module} (>={library.minimum}' in message
    assert 'not installed' in message
    assert library.install_command() in message


def test_missing_optional_library_is_fine(installed):
    libraries.check_library(MMDET, required=False)
    libraries.check_library(MMSEG, required=False)
    libraries.check_library(MMPRETRAIN, required=False)


@pytest.mark.parametrize(
    ('library', 'distribution', 'version', 'advice'),
    [
        (TORCH, 'torch', '2.0.1+cu118', "pip install 'torch>=2.1'. mmcv's compiled ops work only"),
        (MMENGINE, 'mmengine', '0.9.1', "pip install 'mmengine>=0.10,<1.0'"),
        (MMENGINE, 'onedl-mmengine', '1.0.0', "pip install 'onedl-mmengine>=0.10,<1.0'"),
        (MMCV, 'mmcv-full', '1.7.2', "'mmcv>=2.0,<3.0'"),
        (MMCV, 'onedl-mmcv', '3.0.0', "'onedl-mmcv>=2.0,<3.0'"),
        (MMDET, 'mmdet', '2.28.2', "pip install 'mmdet>=3.0,<4.0'"),
        (MMSEG, 'mmsegmentation', '0.30.0', "pip install 'mmsegmentation>=1.0,<2.0'"),
        (MMPRETRAIN, 'mmpretrain', '0.15.0', "pip install 'mmpretrain>=1.0,<2.0'"),
    ],
)
def test_unfit_version_is_named_with_the_range_and_the_command(
    installed, library, distribution, version, advice
):
    installed[distribution] = version
    with pytest.raises(ImportError) as error:
        libraries.check_library(library, required=False)
    message = str(error.value)
    assert f'{distribution} {version} is installed' in message
    assert f'needs {library.module} {library.wanted}' in message
    assert advice in message


@pytest.mark.parametrize(
    ('library', 'distribution', 'version'),
    [
        (TORCH, 'torch', '2.1.0a0+32f93b1'),  # as in NVIDIA's containers
        (TORCH, 'torch', '2.13.0+cpu'),
        (MMENGINE, 'mmengine', '0.10.7'),
        (MMENGINE, 'onedl-mmengine', '0.10.12'),
        (MMCV, 'mmcv', '2.1.0'),
        (MMDET, 'mmdet', '3.3.0'),
        (MMSEG, 'mmsegmentation', '1.2.2'),
        (MMPRETRAIN, 'onedl-mmpretrain', '1.3.6'),
    ],
)
def test_fit_version_passes(installed, library, distribution, version):
    installed[distribution] = version
    libraries.check_library(library, required=True)


def test_two_distributions_of_one_library_are_warned_of(installed):
    installed.update({'mmengine': '0.10.7', 'onedl-mmengine': '0.10.12'})
    with pytest.warns(UserWarning, match='onedl-mmengine and mmengine are both installed'):
        libraries.check_library(MMENGINE, required=True)


def test_source_checkout_on_the_path_is_found(tmp_path, monkeypatch):
    package = tmp_path / 'some_checkout'
    package.mkdir()
    (package / '__init__.py').touch()
    (package / 'version.py').write_text("# a version\n__version__ = '3.1.0'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    library = Library('some_checkout', '3.0', None, ('distribution-of-some-checkout',))
    assert libraries.installed_distributions(library) == {'some_checkout': '3.1.0'}


@pytest.mark.parametrize(
    ('error', 'problem'),
    [
        (ModuleNotFoundError("No module named 'mmcv._ext'"), 'mmcv-lite 2.1.0 has no compiled ops'),
        (ImportError('undefined symbol: _ZN5torch'), 'cannot load .undefined symbol: _ZN5torch'),
    ],
)
def test_mmcv_without_working_ops_is_warned_of(installed, monkeypatch, error, problem):
    def fail(name: str):
        assert name == 'mmcv._ext'
        raise error

    monkeypatch.setattr(libraries, 'import_module', fail)
    installed.update({'torch': '2.13.0', 'mmengine': '0.10.7', 'mmcv-lite': '2.1.0'})
    libraries.check_dependencies()  # no mmdet, no mmseg: nothing needs the ops
    installed['mmpretrain'] = '1.2.0'
    libraries.check_dependencies()

    installed['mmdet'] = '3.3.0'
    with pytest.warns(UserWarning, match=problem) as warnings:
        libraries.check_dependencies()
    assert "--no-build-isolation --no-cache-dir 'mmcv>=2.0,<3.0'" in str(warnings[0].message)


@pytest.mark.parametrize(
    'error',
    [
        ModuleNotFoundError("No module named 'torchvision'"),
        RuntimeError('operator torchvision::nms does not exist'),  # built for another torch
    ],
    ids=lambda error: type(error).__name__,
)
def test_library_of_a_config_that_cannot_be_imported(installed, monkeypatch, error):
    def fail(name: str):
        assert name == 'mmpretrain.models'
        raise error

    monkeypatch.setattr(libraries, 'import_module', fail)
    problem = f'mmpretrain cannot be imported ({type(error).__name__}: {error}). '
    needs = 'It needs the torchvision that is built for your torch'
    with pytest.raises(ImportError) as raised:
        libraries.check_scope('mmpretrain')
    how = "Install it: pip install 'onedl-mmpretrain>=1.0,<2.0'. "
    assert str(raised.value) == problem + how + needs

    installed['mmpretrain'] = '1.2.0'
    with pytest.raises(ImportError) as raised:
        libraries.check_scope('mmpretrain')
    assert str(raised.value) == problem + needs

    libraries.check_scope('mmengine')
    libraries.check_scope(None)


def test_library_of_a_config_that_can_be_imported():
    libraries.check_scope('mmdet')


def test_import_says_what_is_missing():
    code = 'import sys; sys.modules.update(mmcv=None)\n' + (
        'from importlib import metadata\n'
        'version = metadata.version\n'
        'def without_mmcv(name):\n'
        "    if 'mmcv' in name: raise metadata.PackageNotFoundError(name)\n"
        '    return version(name)\n'
        'metadata.version = without_mmcv\n'
        'import acmix_mm\n'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(
        'ImportError: acmix-mm needs mmcv (>=2.0,<3.0)'
    )
