"""What a hostile file can and cannot do, with torch's unpickler and with our own."""

import pickle
import tarfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import torch
from torch import nn
from versions import LOADERS


class StandIn:
    def __init__(self, *args):
        self.args = args

    def __setstate__(self, state):
        self.state = state


STAND_INS = {('somewhere', 'Class'): StandIn}
# Instructions of pickle: a stack machine.
PROTOCOL, STOP = b'\x80\x02', b'.'
CHANGE = b'N}X\x07\x00\x00\x00changedK\x01s\x86b'  # set the attribute `changed` of the top to 1


@pytest.fixture(params=LOADERS)
def load_restricted(request):
    return request.param


@pytest.fixture
def load(tmp_path, load_restricted):
    return lambda instructions: load_restricted(write(tmp_path, instructions), STAND_INS)


def write(folder: Path, instructions: bytes) -> Path:
    """Write a file as torch.save wrote them before it used archives, with given instructions."""
    head: tuple[Any, ...] = (
        torch.serialization.MAGIC_NUMBER,
        torch.serialization.PROTOCOL_VERSION,
        {},
    )
    parts = [*(pickle.dumps(part, 2) for part in head), PROTOCOL + instructions + STOP]
    file = folder / 'file.pth'
    file.write_bytes(b''.join([*parts, pickle.dumps([], 2)]))
    return file


def test_plain_values(load):
    value = {'a': [1, 2.5, (None, True)], 'b': {'c': 'text'}, 'd': b'bytes'}
    assert load(pickle.dumps(value, 2)[2:-1]) == value


def test_stand_ins(load):
    result = load(b'csomewhere\nClass\n(K\x01K\x02tR}b')
    assert isinstance(result, StandIn)
    assert (result.args, result.state) == ((1, 2), {})


@pytest.mark.parametrize(
    'instructions',
    [
        b'cposix\nsystem\n(X\x04\x00\x00\x00truetR',  # GLOBAL, REDUCE
        b'(X\x04\x00\x00\x00trueiposix\nsystem\n',  # INST
        b'(cposix\nsystem\nX\x04\x00\x00\x00trueo',  # OBJ
        b'csubprocess\nPopen\n(X\x04\x00\x00\x00truet\x81',  # NEWOBJ
        b'csubprocess\nPopen\n(X\x04\x00\x00\x00truet}\x92',  # NEWOBJ_EX
        b'c__builtin__\neval\n(X\x01\x00\x00\x001tR',
        b'c__builtin__\ngetattr\n(cposix\nsystem\nX\x04\x00\x00\x00nametR',
        b'X\x05\x00\x00\x00posixX\x06\x00\x00\x00system\x93',  # STACK_GLOBAL
        b'ctorch\nload\n(X\x01\x00\x00\x00xtR',
        b'ctorch\nTensor.__reduce_ex__\n',
        b'csomewhere\nClass.__init__\n',
        b'csomewhere\nOther\n',
    ],
)
def test_other_classes_and_functions_are_refused(load, instructions):
    with pytest.raises(UnpicklingError, match=r'GLOBAL|Unsupported operand'):
        load(instructions)


@pytest.mark.parametrize(
    ('name', 'thing'),
    [
        (b'torch\nTensor', torch.Tensor),
        (b'torch.nn.parameter\nParameter', nn.Parameter),
        (b'torch._utils\n_rebuild_tensor_v2', torch._utils._rebuild_tensor_v2),
        (b'somewhere\nClass', StandIn),
    ],
)
def test_classes_and_functions_cannot_be_changed(load, name, thing):
    with pytest.raises(Exception):  # noqa: B017, PT011  each unpickler has its own errors
        load(b'c' + name + b'\n' + CHANGE)
    assert not hasattr(thing, 'changed')


def test_torchscript_is_refused(tmp_path, load_restricted):
    torch.jit.save(torch.jit.trace(nn.Identity(), torch.ones(1)), tmp_path / 'script.pth')
    with pytest.raises((RuntimeError, UnpicklingError), match='TorchScript'):
        load_restricted(tmp_path / 'script.pth', STAND_INS)


def test_links_in_a_tar_archive_are_not_followed(tmp_path, load_restricted):
    secret = tmp_path / 'secret'
    secret.touch(mode=0o600)
    link = tarfile.TarInfo('storages')
    link.type, link.linkname, link.mode = tarfile.LNKTYPE, str(secret), 0o777
    with tarfile.open(tmp_path / 'file.pth', 'w') as archive:
        archive.addfile(link)
    with pytest.raises((RuntimeError, UnpicklingError)):
        load_restricted(tmp_path / 'file.pth', STAND_INS)
    assert secret.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize('content', [b'', b'# Read me', b'\x80\x02}.'])
def test_damage_is_one_kind_of_error(tmp_path, load_restricted, content):
    (tmp_path / 'file.pth').write_bytes(content)
    with pytest.raises((RuntimeError, UnpicklingError, EOFError)):
        load_restricted(tmp_path / 'file.pth', STAND_INS)
