"""The workarounds for mmengine that our tools apply."""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from fresh_process import run_python
from mmengine import _strategy
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file

from acmix_mm.runtime import mmengine_patches as patches
from acmix_mm.runtime import patch_mmengine, require_inputs


def passes_by_position(strategy, state_dict):
    return strategy.to_load(state_dict, strategy.model)


def passes_by_name(strategy, state_dict):
    return strategy.to_load(optim_state_dict=state_dict, model=strategy.model)


@pytest.mark.parametrize(
    ('method', 'replaced'), [(passes_by_position, True), (passes_by_name, False)]
)
def test_only_a_method_that_passes_by_position_is_replaced(monkeypatch, method, replaced):
    monkeypatch.setattr(_strategy.FSDPStrategy, 'load_optim_state_dict', method)
    patches.resume_sharded_optimizers()
    assert (_strategy.FSDPStrategy.load_optim_state_dict is not method) == replaced


@pytest.fixture
def patched(monkeypatch):
    """Apply all workarounds to mmengine for one test."""
    strategy = _strategy.FSDPStrategy
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setattr(CheckpointLoader, 'load_checkpoint', CheckpointLoader.load_checkpoint)
    monkeypatch.setattr(strategy, 'load_optim_state_dict', strategy.load_optim_state_dict)
    patch_mmengine()


@pytest.mark.usefixtures('patched')
def test_local_safetensors_load(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    weights = {'conv.weight': torch.rand(2, 3)}
    save_file(weights, tmp_path / 'x.safetensors')
    for path in (str(tmp_path / 'x.safetensors'), '~/x.safetensors'):
        loaded = CheckpointLoader.load_checkpoint(path, map_location='cpu')['state_dict']
        assert torch.equal(loaded['conv.weight'], weights['conv.weight'])


class Handler(SimpleHTTPRequestHandler):
    """Serve the files of a folder, and keep the paths that were asked for."""

    def do_GET(self):
        self.server.requested.append(self.path)
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """Serve the folder of the test at ``server.address``."""
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=str(tmp_path))) as server:
        server.requested = []
        server.address = f'http://127.0.0.1:{server.server_port}'
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize('query', ['', '?download=true'])
def test_safetensors_of_a_url_are_downloaded_once(server, tmp_path, monkeypatch, query):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    weights = {'conv.weight': torch.rand(2, 3)}
    save_file(weights, tmp_path / 'x.safetensors')
    url = f'{server.address}/x.safetensors{query}'
    require_inputs(Config(dict()), [], [url])  # as the tools do; it patches
    loaded = CheckpointLoader.load_checkpoint(url, map_location='cpu')['state_dict']
    assert torch.equal(loaded['conv.weight'], weights['conv.weight'])
    assert server.requested == [f'/x.safetensors{query}']
    assert len(list((tmp_path / 'torch/hub/checkpoints').glob('*-x.safetensors'))) == 1
    (tmp_path / 'other').mkdir()
    save_file({'conv.weight': torch.zeros(2, 3)}, tmp_path / 'other/x.safetensors')
    other = CheckpointLoader.load_checkpoint(f'{server.address}/other/x.safetensors{query}')
    assert not other['state_dict']['conv.weight'].any(), 'a file of the same name'
    with pytest.raises(SystemExit, match=r'missing\.safetensors cannot be loaded \(HTTPError'):
        require_inputs(Config(dict()), [], [f'{server.address}/missing.safetensors'])


@pytest.mark.usefixtures('patched')
@pytest.mark.parametrize(
    ('address', 'loader'),
    [
        ('s3://bucket/x.safetensors', 'load_from_ceph'),
        ('http://host/x.pth', 'load_from_http'),
        ('https://host/x.pth?name=x.safetensors', 'load_from_http'),
        ('openmmlab://x.safetensors', 'load_from_openmmlab'),
        ('x.pth', 'load_from_local'),
    ],
)
def test_other_addresses_keep_their_loaders(address, loader):
    assert CheckpointLoader._get_checkpoint_loader(address).__name__ == loader


@pytest.mark.usefixtures('patched')
def test_patching_twice_is_patching_once():
    schemes = dict(CheckpointLoader._schemes)
    load = CheckpointLoader.load_checkpoint
    resume = _strategy.FSDPStrategy.load_optim_state_dict
    assert list(schemes).count(patches._LOCAL_SAFETENSORS) == 1
    patch_mmengine()
    assert list(CheckpointLoader._schemes) == list(schemes)
    assert _strategy.FSDPStrategy.load_optim_state_dict is resume
    assert CheckpointLoader.load_checkpoint == load


def test_importing_the_package_changes_nothing():
    """Projects that only import it keep mmengine's loader, hook and file backend."""
    run_python(
        """
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import CheckpointLoader

load = CheckpointLoader.load_checkpoint
schemes = dict(CheckpointLoader._schemes)
import acmix_mm
assert CheckpointLoader.load_checkpoint == load
assert CheckpointLoader._schemes == schemes
assert HOOKS.get('CheckpointHook') is CheckpointHook
assert type(get_file_backend('file')) is LocalBackend
import acmix_mm.hooks, acmix_mm.runtime
assert CheckpointLoader.load_checkpoint == load
assert HOOKS.get('CheckpointHook') is CheckpointHook
assert type(get_file_backend('file')) is LocalBackend
"""
    )
