import argparse
import hashlib
import json
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from versions import LOADERS

from acmix_mm.checkpoints import files, unwrap
from acmix_mm.checkpoints.files import published_meta, read_checkpoint, write_checkpoint

STATE = {'a.weight': torch.arange(6.0).view(2, 3), 'b': torch.tensor([1], dtype=torch.int64)}


@pytest.fixture(autouse=True, params=LOADERS)
def loader(request, monkeypatch):
    """Run each test with torch's unpickler and with the one for older versions of torch."""
    monkeypatch.setattr(files, 'load_restricted', request.param)


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class RunsCode:
    def __init__(self, call, *args):
        self.call = call, args

    def __reduce__(self):
        return self.call


def test_reads_what_torch_saves(tmp_path):
    for legacy in (False, True):
        torch.save({'model': STATE}, tmp_path / 'a.pth', _use_new_zipfile_serialization=not legacy)
        assert equal(read_checkpoint(tmp_path / 'a.pth')['model'], STATE)


@pytest.mark.parametrize('place', ['state_dict', 'beside'])
def test_code_is_not_run(tmp_path, place):
    proof = tmp_path / 'proof'
    code = RunsCode(exec, f'open({str(proof)!r}, "w")')
    checkpoint = {'model': {'a': code}} if place == 'state_dict' else {'model': STATE, 'x': code}
    torch.save(checkpoint, tmp_path / 'evil.pth')
    with pytest.raises(ValueError, match=r'evil.pth is refused: it contains exec, and reading'):
        read_checkpoint(tmp_path / 'evil.pth')
    assert not proof.exists()
    torch.load(tmp_path / 'evil.pth', weights_only=False)
    assert proof.exists(), 'the file would have run code'


def test_stand_ins_run_nothing(tmp_path):
    """Functions that are allowed, such as getattr, are replaced as well."""
    torch.save({'model': STATE, 'x': RunsCode(getattr, STATE['b'], 'shape')}, tmp_path / 'a.pth')
    assert torch.load(tmp_path / 'a.pth', weights_only=False)['x'] == (1,)
    assert read_checkpoint(tmp_path / 'a.pth')['x'] != (1,)


def test_reads_training_states(tmp_path, monkeypatch):
    """Logs of mmengine, arguments of PVT, and settings of Swin, whose library is not installed."""
    module = types.ModuleType('yacs.config')
    module.CfgNode = type('CfgNode', (dict,), dict(__module__='yacs.config'))
    settings = module.CfgNode(A=module.CfgNode(B=1))
    settings.__dict__['frozen'] = True
    monkeypatch.setitem(sys.modules, 'yacs', types.ModuleType('yacs'))
    monkeypatch.setitem(sys.modules, 'yacs.config', module)
    training = {
        'model': STATE,
        'message_hub': {'loss': HistoryBuffer([1.0, 2.0], [1, 1]), 'best': np.float64(3)},
        'args': argparse.Namespace(lr=0.1, betas=[0.9]),
        'config': settings,
        'optimizer': {'state': {0: {'step': torch.tensor(3.0)}}},
    }
    torch.save(training, tmp_path / 'training.pth')
    monkeypatch.delitem(sys.modules, 'yacs.config')
    checkpoint = read_checkpoint(tmp_path / 'training.pth')
    assert equal(unwrap(checkpoint), STATE)
    assert checkpoint['config'] == {'A': {'B': 1}}
    assert not isinstance(checkpoint['message_hub']['loss'], HistoryBuffer)


@pytest.mark.parametrize('content', [b'', b'# Read me', pickle.dumps([1, 2], 2), b'\x80\x02}.'])
def test_other_files_are_refused(tmp_path, content):
    for name in ('a.pth', 'a.safetensors'):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf'{name} is not a (checkpoint|safetensors)'):
            read_checkpoint(tmp_path / name)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none.pth does not exist'):
        read_checkpoint(tmp_path / 'none.pth')


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_writes_and_reads_again(tmp_path, suffix):
    meta = dict(epoch=3, dataset_meta=dict(classes=['cat']))
    shared = STATE | {'view': STATE['a.weight'].T}
    path = write_checkpoint(tmp_path / 'new' / f'x{suffix}', shared, meta)
    assert path == tmp_path / 'new' / f'x{suffix}'
    checkpoint = read_checkpoint(path)
    assert equal(checkpoint['state_dict'], shared)
    assert checkpoint['meta'] == meta
    if suffix == '.pth':  # for mmengine and safetensors see tests/runtime/test_mmengine_patches.py
        assert equal(CheckpointLoader.load_checkpoint(str(path), 'cpu')['state_dict'], shared)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_hash_in_the_name(tmp_path, suffix):
    path = write_checkpoint(tmp_path / f'x{suffix}', STATE, {}, hashed=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f'x-{digest[:8]}{suffix}'
    again = write_checkpoint(tmp_path / f'y{suffix}', STATE, {}, hashed=True)
    assert again.name == f'y-{digest[:8]}{suffix}', 'the same weights have the same hash'


def test_published_meta():
    assert published_meta({'model': STATE}) == {}
    assert published_meta([1]) == {}
    meta = dict(cfg='x', dataset_meta={}, seed=3, time='now', experiment_name='mine')
    assert published_meta(dict(meta=meta)) == dict(cfg='x', dataset_meta={})


def test_files_are_mapped_by_their_name(tmp_path, monkeypatch):
    """Older versions of torch map no file that is given as another kind of path."""
    seen, load = [], torch.serialization.load

    def recorded(file, **options):
        seen.append((file, options['mmap']))
        return load(file, **options)

    monkeypatch.setattr(torch.serialization, 'load', recorded)
    torch.save(STATE, tmp_path / 'a.pth')
    assert equal(read_checkpoint(tmp_path / 'a.pth', mmap=True), STATE)
    assert seen == [(str(tmp_path / 'a.pth'), True)]


def test_refuses_to_write_what_it_cannot(tmp_path):
    sparse = torch.eye(3).to_sparse()
    with pytest.raises(ValueError, match=r'a is a tensor of layout torch.sparse_coo; only dense'):
        write_checkpoint(tmp_path / 'a.pth', dict(a=sparse), {})
    with pytest.raises(ValueError, match=r'meta cannot be written to a safetensors file: .*set'):
        write_checkpoint(tmp_path / 'a.safetensors', STATE, dict(dataset_meta={1}))
    meta = dict(dataset_meta={})
    meta['dataset_meta']['again'] = meta['dataset_meta']
    with pytest.raises(ValueError, match='meta contains itself'):
        published_meta(dict(meta=meta))
    header = json.dumps({'__metadata__': dict(meta='[' * 200_000)}).encode()
    (tmp_path / 'b.safetensors').write_bytes(len(header).to_bytes(8, 'little') + header)
    with pytest.raises(ValueError, match=r'b.safetensors is not a safetensors file'):
        read_checkpoint(tmp_path / 'b.safetensors')
    assert not list(tmp_path.glob('a.*'))
