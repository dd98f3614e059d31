"""Wherever our tools let mmengine read a checkpoint, no code in it runs, and its logs are read."""

import io
import pickle
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import hostile
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, Runner, checkpoint
from tiny_training import tiny_config
from versions import LOADERS, needs_safe_globals, needs_safe_torch_load

from acmix_mm.backbones import ACmixResNet
from acmix_mm.checkpoints import files
from acmix_mm.checkpoints.files import read_checkpoint
from acmix_mm.runtime import build_runner, patch_mmengine
from acmix_mm.runtime.checkpoint_loader import load_checkpoints_safely

STOCK = CheckpointLoader.load_checkpoint


@pytest.fixture(autouse=True)
def patched(monkeypatch):
    """Let mmengine read safely, as in our tools."""
    monkeypatch.setattr(CheckpointLoader, 'load_checkpoint', STOCK)
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setattr(Config, 'pretty_text', property(lambda self: ''))  # which takes long
    # What a successful attack of the generator changes.
    name = '_get_user_allowed_globals'  # which older versions of torch lack
    allowed = getattr(torch._weights_only_unpickler, name, None)
    monkeypatch.setattr(torch._weights_only_unpickler, name, allowed, raising=False)
    patch_mmengine()


@pytest.fixture(scope='module')
def training(tmp_path_factory) -> Path:
    """Train, and return the last checkpoint."""
    work_dir = tmp_path_factory.mktemp('training')
    build_runner(tiny_config(work_dir)).train()
    return work_dir / 'epoch_4.pth'


@pytest.fixture
def marker(tmp_path) -> Path:
    """Return the path of the file that hostile files create when they run code."""
    return tmp_path / 'code-ran'


@pytest.fixture(params=hostile.ATTACKS, ids=lambda attack: attack.__name__)
def attack(request, tmp_path, marker, training) -> Path:
    """Write the checkpoint of a training that contains an attack."""
    content = torch.load(training, weights_only=False)
    hostile.write_checkpoint(tmp_path / 'hostile.pth', request.param(f'touch {marker}'), content)
    return tmp_path / 'hostile.pth'


def pretrained(path: str, work_dir: Path) -> None:
    init_cfg = dict(type='Pretrained', checkpoint=path)
    ACmixResNet(depth=26, base_channels=4, init_cfg=init_cfg).init_weights()


def load_from(path: str, work_dir: Path) -> None:
    cfg = tiny_config(work_dir)
    cfg.load_from = path
    build_runner(cfg).train()


def resume(path: str, work_dir: Path) -> None:
    cfg = tiny_config(work_dir)
    cfg.load_from, cfg.resume = path, True
    build_runner(cfg).train()


def test_checkpoint(path: str, work_dir: Path) -> None:
    cfg = tiny_config(work_dir)
    cfg.load_from = path
    build_runner(cfg).test()


test_checkpoint.__test__ = False  # type: ignore[attr-defined]
ENTRIES = [pretrained, load_from, resume, test_checkpoint, lambda path, _: read_checkpoint(path)]
NAMES = ['Pretrained', 'load_from', 'resume', 'test', 'read_checkpoint']


def read(entry, path: Path, work_dir: Path) -> str:
    """Read a checkpoint through an entry, and return the error."""
    try:
        entry(str(path), work_dir)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ''


@pytest.mark.parametrize('entry', ENTRIES, ids=NAMES)
def test_no_code_runs(attack, entry, marker, tmp_path):
    message = read(entry, attack, tmp_path / 'run')
    assert not marker.exists()
    assert 'hostile.pth is ' in message
    assert 'refused: it contains' in message or 'not a checkpoint' in message


@pytest.mark.parametrize('unpickler', LOADERS)
def test_no_code_runs_with_either_unpickler(attack, marker, tmp_path, monkeypatch, unpickler):
    monkeypatch.setattr(files, 'load_restricted', unpickler)
    assert 'hostile.pth is ' in read(ENTRIES[-1], attack, tmp_path)
    assert not marker.exists()


@needs_safe_globals
@pytest.mark.parametrize('attack', hostile.ATTACKS, ids=lambda attack: attack.__name__)
def test_the_attacks_are_attacks(attack, marker, tmp_path):
    """Without care every one of them runs code."""
    hostile.write_checkpoint(tmp_path / 'hostile.pth', attack(f'touch {marker}'))
    with torch.serialization.safe_globals([getattr]):
        try:
            torch.load(tmp_path / 'hostile.pth', weights_only=True)
        except Exception:
            torch.load(tmp_path / 'hostile.pth', weights_only=False)
    assert marker.exists()


def test_program_in_the_meta_is_not_run(training, marker, tmp_path):
    content = torch.load(training, weights_only=False)
    content['meta'].update(config=f'import os\nos.system("touch {marker}")\n', epoch=3, iter=12)
    torch.save(content, tmp_path / 'hostile.pth')
    assert not read(resume, tmp_path / 'hostile.pth', tmp_path / 'run')
    assert (tmp_path / 'run/epoch_4.pth').is_file(), 'the training went on'
    assert not marker.exists()

    CheckpointLoader.load_checkpoint = STOCK
    cfg = tiny_config(tmp_path / 'stock')
    cfg.load_from, cfg.resume = str(tmp_path / 'hostile.pth'), True
    Runner.from_cfg(cfg).train()
    assert marker.exists(), 'mmengine itself runs it'


@pytest.mark.parametrize('scheme', ['http', 'mmcls', 'open-mmlab', 's3', 'registered'])
def test_no_code_of_any_address_runs(tmp_path, marker, monkeypatch, scheme):
    hostile.write_checkpoint(tmp_path / 'x.pth', hostile.eval_call(f'touch {marker}'))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    class Backend:
        def get(self, filename):
            return (tmp_path / 'x.pth').read_bytes()

    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=str(tmp_path))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/x.pth'
        models = lambda: dict(x=url)  # noqa: E731
        monkeypatch.setattr(checkpoint, 'get_mmcls_models', models)
        monkeypatch.setattr(checkpoint, 'get_external_models', models)
        monkeypatch.setattr(checkpoint, 'get_file_backend', lambda *args, **kwargs: Backend())
        CheckpointLoader.register_scheme(
            'registered://', lambda name, map_location: torch.load(io.BytesIO(Backend().get(name)))
        )
        address = {'http': url, 's3': 's3://bucket/x.pth'}.get(scheme, f'{scheme}://x')
        with pytest.raises(ValueError, match='refused: it contains eval'):
            CheckpointLoader.load_checkpoint(address)
        server.shutdown()
    assert not marker.exists()


@needs_safe_globals
def test_what_other_code_allows_is_not_allowed(tmp_path, marker):
    hostile.write_checkpoint(
        tmp_path / 'x.pth', hostile.getattr_walk_without_calls(f'touch {marker}')
    )
    with torch.serialization.safe_globals([getattr, print]):
        before = set(torch.serialization.get_safe_globals())
        with pytest.raises(ValueError, match=r'x\.pth is'):
            read_checkpoint(tmp_path / 'x.pth')
        assert set(torch.serialization.get_safe_globals()) == before
    assert not marker.exists()


def test_torch_load_is_as_before(training, monkeypatch):
    original = torch.load
    CheckpointLoader.load_checkpoint(str(training))
    assert torch.load is original
    with pytest.raises(FileNotFoundError):
        CheckpointLoader.load_checkpoint('nowhere.pth')
    assert torch.load is original
    load_checkpoints_safely()
    CheckpointLoader.load_checkpoint(str(training), map_location='cpu')


def stock_values(path: Path) -> dict:
    return torch.load(path, weights_only=False)


def test_logs_and_numbers_of_numpy_are_read(training):
    content = CheckpointLoader.load_checkpoint(str(training))
    expected = stock_values(training)
    logs, stock_logs = content['message_hub']['log_scalars'], expected['message_hub']['log_scalars']
    assert logs.keys() == stock_logs.keys()
    assert len(logs) > 2
    for name, log in logs.items():
        assert type(log) is HistoryBuffer
        for one, other in zip(log.data, stock_logs[name].data, strict=True):
            np.testing.assert_array_equal(one, other)
        assert log.max_length == stock_logs[name].max_length
        assert log.statistics('current') == stock_logs[name].current()
    palette = content['meta']['dataset_meta']['palette']
    np.testing.assert_array_equal(palette, np.eye(3))
    assert palette.dtype == np.float64


@pytest.mark.parametrize(
    'value',
    [
        np.float32(1.5), np.int64(-3), np.bool_(True), np.arange(6).reshape(2, 3),
        np.arange(6, dtype='>f4').reshape(2, 3), np.asfortranarray(np.eye(2, 3)),
        np.array(['cat', 'a dog']), np.array(b'bytes'), np.zeros((0, 2)), np.float64('nan'),
        slice(1, None, 2),
    ],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize('unpickler', LOADERS)
def test_values(tmp_path, monkeypatch, value, unpickler):
    monkeypatch.setattr(files, 'load_restricted', unpickler)
    torch.save({'a': [value, (value,)]}, tmp_path / 'x.pth')
    first, (second,) = read_checkpoint(tmp_path / 'x.pth')['a']
    for read_value in (first, second):
        assert type(read_value) is type(value)
        if isinstance(value, np.ndarray):
            assert read_value.dtype == value.dtype
        np.testing.assert_array_equal(read_value, value)


@pytest.mark.parametrize('core', [b'core', b'_core'])
def test_checkpoint_written_with_another_numpy(tmp_path, core):
    path = tmp_path / 'x.pth'
    torch.save({'a': np.float64(0.5)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes().replace(b'numpy._core.', b'numpy.core.')
    assert content.count(b'numpy.core.multiarray\n') == 1
    path.write_bytes(content.replace(b'numpy.core.', b'numpy.' + core + b'.'))
    assert read_checkpoint(path) == {'a': 0.5}


@needs_safe_torch_load
def test_loader_of_upstream(training, monkeypatch, tmp_path, marker):
    """Its release calls ``torch.load`` without any care for what newer versions of torch refuse."""

    def load_from_local(filename, map_location=None):
        return torch.load(filename, map_location=map_location)

    CheckpointLoader.register_scheme('', load_from_local, force=True)
    with pytest.raises(pickle.UnpicklingError, match='Weights only load failed'):
        load_from_local(str(training))
    logs = CheckpointLoader.load_checkpoint(str(training))['message_hub']['log_scalars']
    assert {type(log) for log in logs.values()} == {HistoryBuffer}
    hostile.write_checkpoint(tmp_path / 'x.pth', hostile.eval_call(f'touch {marker}'))
    with pytest.raises(ValueError, match='refused: it contains eval'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'x.pth'))
    assert not marker.exists()


def test_other_arrays_are_left_out(tmp_path):
    for value in (np.array([{}, None]), np.zeros(2, dtype='f4,i4')):
        torch.save({'a': value, 'b': 1}, tmp_path / 'x.pth')
        content = read_checkpoint(tmp_path / 'x.pth')
        assert content['b'] == 1
        assert not isinstance(content['a'], np.ndarray)


def test_content_that_contains_itself(tmp_path):
    content: dict = {'a': [np.float64(1)]}
    content['state_dict'] = content
    torch.save(content, tmp_path / 'x.pth')
    loaded = read_checkpoint(tmp_path / 'x.pth')
    assert loaded['state_dict'] is loaded
    assert loaded['a'] == [1]
