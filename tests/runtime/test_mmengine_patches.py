"""The workarounds for mmengine."""

import pickle
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from fresh_process import run_python
from mmengine import _strategy
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file

from acmix_mm import registry
from acmix_mm.runtime import mmengine_patches as patches
from acmix_mm.runtime import patch_mmengine


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_config_inherits_from_installed_libraries(tmp_path, scope):
    if not find_spec(scope):  # found is enough: without torchvision, mmpretrain isn't importable
        pytest.skip(f'{scope} is not installed')
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = '{scope}::_base_/default_runtime.py'")
    assert Config.fromfile(config).default_scope == scope


@pytest.mark.parametrize(
    ('distribution', 'name'),
    [('onedl-mmsegmentation', 'mmseg'), ('mmsegmentation', 'mmsegmentation')],
)
def test_only_the_fork_of_mmseg_is_looked_up_by_its_module(monkeypatch, distribution, name):
    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
    monkeypatch.setattr(
        registry, 'installed_distributions', lambda library: {distribution: '1.2.2'}
    )
    registry.register_config_names()
    assert MODULE2PACKAGE['mmseg'] == name


@pytest.fixture
def upstream_mmengine(monkeypatch):
    """Has mmengine load checkpoints as upstream's release does: with a plain `torch.load`."""

    def load_from_local(filename, map_location=None):
        return torch.load(filename, map_location=map_location)

    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.delattr(patches.checkpoint, 'get_torch_safe_globals', raising=False)
    monkeypatch.setattr(patches.checkpoint, 'load_from_local', load_from_local)
    CheckpointLoader.register_scheme('', load_from_local, force=True)


@pytest.fixture
def logs():
    buffer = HistoryBuffer()
    buffer.update(0.5)
    return {'loss': buffer, 'metric': np.float64(0.25), 'count': np.int64(3)}


def check_loaded(logs):
    assert logs['loss'].current() == 0.5
    assert logs['loss'].statistics('mean') == 0.5
    assert logs['metric'] == 0.25
    assert logs['count'] == 3


def test_checkpoint_with_logs_loads(tmp_path, upstream_mmengine, logs):
    path = str(tmp_path / 'checkpoint.pth')
    torch.save(logs, path)
    with pytest.raises(pickle.UnpicklingError, match='Weights only load failed'):
        CheckpointLoader.load_checkpoint(path)

    patches.allow_checkpoint_contents()
    check_loaded(CheckpointLoader.load_checkpoint(path))
    with pytest.raises(pickle.UnpicklingError, match='Weights only load failed'):
        torch.load(path)  # nobody else's loading is changed


@pytest.mark.parametrize('core', [b'core', b'_core'])
def test_checkpoint_written_with_another_numpy_loads(tmp_path, upstream_mmengine, logs, core):
    path = tmp_path / 'checkpoint.pth'
    torch.save(logs, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b'core.multiarray\n') >= 2
    content = content.replace(b'numpy._core.', b'numpy.core.')  # as numpy 1 has it
    path.write_bytes(content.replace(b'numpy.core.', b'numpy.' + core + b'.'))

    patches.allow_checkpoint_contents()
    check_loaded(CheckpointLoader.load_checkpoint(str(path)))


def test_loader_that_is_safe_already_is_left_alone(monkeypatch):
    monkeypatch.setattr(patches.checkpoint, 'get_torch_safe_globals', lambda: [], raising=False)
    before = dict(CheckpointLoader._schemes)
    patches.allow_checkpoint_contents()
    assert CheckpointLoader._schemes == before


@pytest.fixture
def patched(monkeypatch):
    """mmengine with all workarounds, for one test."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    patch_mmengine()


@pytest.mark.usefixtures('patched')
def test_local_safetensors_load(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    weights = {'conv.weight': torch.rand(2, 3)}
    save_file(weights, tmp_path / 'x.safetensors')
    for path in (str(tmp_path / 'x.safetensors'), '~/x.safetensors'):
        loaded = CheckpointLoader.load_checkpoint(path, map_location='cpu')['state_dict']
        assert torch.equal(loaded['conv.weight'], weights['conv.weight'])


@pytest.mark.usefixtures('patched')
@pytest.mark.parametrize(
    ('address', 'loader'),
    [
        ('s3://bucket/x.safetensors', 'load_from_ceph'),
        ('https://host/x.safetensors', 'load_from_http'),
        ('openmmlab://x.safetensors', 'load_from_openmmlab'),
        ('x.pth', 'load_from_local'),
    ],
)
def test_other_addresses_keep_their_loaders(address, loader):
    assert CheckpointLoader._get_checkpoint_loader(address).__name__ == loader


def test_patching_twice_is_patching_once(monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    patch_mmengine()
    schemes = list(CheckpointLoader._schemes)
    resume = _strategy.FSDPStrategy.load_optim_state_dict
    patch_mmengine()
    assert list(CheckpointLoader._schemes) == schemes
    assert _strategy.FSDPStrategy.load_optim_state_dict is resume


def test_import_patches_nothing():
    run_python(
        """
from mmengine import _strategy
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader, checkpoint

def snapshot():
    modules = (CheckpointLoader, checkpoint, _strategy, _strategy.FSDPStrategy)
    return [dict(vars(module)) for module in modules], dict(CheckpointLoader._schemes)

before, packages = snapshot(), dict(MODULE2PACKAGE)
import acmix_mm
assert snapshot() == before
assert MODELS.get('ACmixResNet')
changed = {name for name in MODULE2PACKAGE if packages.get(name) != MODULE2PACKAGE[name]}
assert 'acmix_mm' in changed and changed <= {'acmix_mm', 'mmseg'}, changed
"""
    )
