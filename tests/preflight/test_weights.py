import socket
import threading
from collections import OrderedDict

import pytest
import torch
from mmdet.models import DetTTAModel
from mmengine.config import Config
from torch import nn

from acmix_mm.preflight import weights
from acmix_mm.preflight.weights import (
    check_checkpoints,
    check_fit,
    check_pretrained,
    pretrained_checkpoints,
)
from acmix_mm.registry import MODELS

CLOSED_PORT = 'http://127.0.0.1:9/resnet.pth'
WEIGHTS = {'conv.weight': torch.ones(4, 3), 'conv.bias': torch.ones(4)}


@pytest.mark.parametrize(
    'content',
    [
        WEIGHTS,
        {'state_dict': WEIGHTS, 'meta': {'epoch': 3}},
        {'model': OrderedDict(WEIGHTS), 'optimizer': {}},
        {'state_dict': WEIGHTS | {'extra_state': {'scale': 1}}},
    ],
)
def test_sound_checkpoint(content, tmp_path):
    torch.save(content, tmp_path / 'a.pth')
    check_checkpoints([str(tmp_path / 'a.pth')])


@pytest.mark.parametrize('path', ['missing.pth', CLOSED_PORT, 'open-mmlab://no-such-model'])
def test_missing_checkpoint(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        check_checkpoints([path])
    assert path in str(error.value)
    assert 'make demo' in str(error.value)


def itself():
    content = {'weight': torch.ones(1)}
    content['state_dict'] = content
    return content


CONTENTS = {
    'a list': [1, 2],
    'a number': 3,
    'None': None,
    'a tensor': torch.ones(3),
    'empty': {},
    'no weights': {'epoch': 3},
    'empty state dict': {'state_dict': {}},
    'state dict of numbers': {'state_dict': {'a': 1}},
    'integer keys': {'state_dict': {5: torch.ones(1)}},
    'tuple keys': {(1, 2): torch.ones(1)},
    'itself': itself(),
    '4 TB': {'state_dict': {'a': torch.ones(1).expand(10**12)}},
}
SOUND = b'sound'
FILES = {
    'truncated': lambda sound: sound[: len(sound) // 2],
    'without its end': lambda sound: sound[:-1],
    'empty': lambda sound: b'',
    'one byte': lambda sound: b'\x80',
    'random': lambda sound: bytes(range(256)) * 10,
    'text': lambda sound: b'not a checkpoint\n',
    'HTML': lambda sound: b'<!DOCTYPE html><html>404</html>',
    'zip of nothing': lambda sound: b'PK\x05\x06' + bytes(18),
    'pointer of Git LFS': lambda sound: b'version https://git-lfs.github.com/spec/v1\noid sha256:0',
}


def fault_of(path):
    """Return the one message about a checkpoint, which names it."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        check_checkpoints([str(path)])
    fault, *way_on = str(error.value).splitlines()
    assert str(path) in fault
    assert 'cannot be loaded' in fault
    assert len(fault) < 400
    assert way_on[0] == 'To continue, either:'
    return fault


@pytest.mark.parametrize('content', CONTENTS.values(), ids=CONTENTS)
def test_planted_content(content, tmp_path):
    torch.save(content, tmp_path / 'a.pth')
    fault_of(tmp_path / 'a.pth')


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('damage', FILES.values(), ids=FILES)
def test_planted_file(damage, suffix, tmp_path):
    torch.save(WEIGHTS, tmp_path / 'sound.pth')
    (tmp_path / f'a{suffix}').write_bytes(damage((tmp_path / 'sound.pth').read_bytes()))
    fault_of(tmp_path / f'a{suffix}')


HEADERS = {
    'no JSON': b'{"a"',
    'a list': b'[]',
    'beyond the file': b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}',
    'another size': b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,8]}}',
    'unknown type': b'{"a":{"dtype":"X1","shape":[2],"data_offsets":[0,8]}}',
    'negative shape': b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}',
    'meta of no JSON': b'{"__metadata__":{"meta":"x"},"a":{"dtype":"F32","shape":[2],'
    b'"data_offsets":[0,8]}}',
}


@pytest.mark.parametrize('header', HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize('length', [None, 2**62])
def test_planted_header(header, length, tmp_path):
    size = len(header) if length is None else length
    (tmp_path / 'a.safetensors').write_bytes(size.to_bytes(8, 'little') + header + bytes(8))
    fault_of(tmp_path / 'a.safetensors')


@pytest.fixture
def silent_server():
    """Start a server that accepts connections and never answers, and return its address."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        accepted = []
        done = threading.Event()

        def accept():
            while not done.is_set():
                try:
                    accepted.append(server.accept())
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f'http://127.0.0.1:{server.getsockname()[1]}'
        done.set()
        for connection, _ in accepted:
            connection.close()


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_planted_silent_server(silent_server, suffix, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(weights, 'SECONDS_TO_ANSWER', 0.2)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    url = f'{silent_server}/a{suffix}'
    with pytest.raises(FileNotFoundError, match='timed out') as error:
        check_checkpoints([url])
    assert url in str(error.value).splitlines()[0]
    assert f'Loading {url}' in capsys.readouterr().err
    assert socket.getdefaulttimeout() is None


def test_pretrained_checkpoints_of_a_model():
    def init_cfg(name):
        return dict(type='Pretrained', checkpoint=name)

    model = Config(
        dict(
            pretrained='a',
            backbone=dict(init_cfg=init_cfg('b')),
            neck=dict(init_cfg=[dict(type='Normal', layer='Conv2d'), init_cfg('c')]),
            heads=[dict(init_cfg=init_cfg('d')), dict(init_cfg=None, pretrained=None)],
        )
    )
    assert list(pretrained_checkpoints(model._cfg_dict)) == ['a', 'b', 'c', 'd']


RESNET = {'layer1.0.conv2.weight': torch.ones(1)}
SWIN = {'layers.0.blocks.0.attn.relative_position_bias_table': torch.ones(169, 3)}


def backbone(path, kind='ACmixSwin', **options):
    return dict(type=kind, init_cfg=dict(type='Pretrained', checkpoint=str(path), **options))


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        (RESNET, r'its format is plain ResNet \(torchvision\)'),
        (WEIGHTS, 'its format is unknown'),
        ({'a': torch.ones(1), 'b': 3}, "entry 'b' is a int"),
    ],
)
def test_planted_family(content, says, tmp_path):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=says) as error:
        check_pretrained(dict(backbone=backbone(tmp_path / 'a.pth')))
    assert str(tmp_path / 'a.pth') in str(error.value)


def test_pretrained_of_the_family(tmp_path):
    torch.save({'model': SWIN}, tmp_path / 'swin.pth')
    check_pretrained(dict(backbone=backbone(tmp_path / 'swin.pth')))
    # What other backbones load is not known here, and parts of a file are not looked at.
    torch.save(RESNET, tmp_path / 'resnet.pth')
    check_pretrained(dict(backbone=backbone(tmp_path / 'resnet.pth', 'ResNet')))
    check_pretrained(dict(backbone=backbone(tmp_path / 'resnet.pth', prefix='backbone.')))


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = MODELS.build(dict(type='ACmixResNet', depth=26, base_channels=16))
        self.head = nn.Linear(3, 2)

    def test_step(self, data):
        raise NotImplementedError


@pytest.fixture(scope='module')
def detector():
    return Detector()


@pytest.mark.parametrize('wrap', [lambda model: model, lambda model: {'state_dict': model}])
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_fit_of_the_whole_model(detector, wrap, prefix, tmp_path):
    state_dict = {prefix + name: value for name, value in detector.state_dict().items()}
    torch.save(wrap(state_dict), tmp_path / 'a.pth')
    check_fit(detector, str(tmp_path / 'a.pth'), complete=True)
    tta = DetTTAModel(module=detector, tta_cfg={})
    check_fit(tta, str(tmp_path / 'a.pth'), complete=True)


def test_weights_that_a_load_hook_adds_are_not_missing(tmp_path):
    sizes = dict(embed_dims=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
    model = nn.ModuleDict(dict(backbone=MODELS.build(dict(type='ACmixSwin', **sizes))))
    plain = {
        name: value
        for name, value in model.state_dict().items()
        if '.mix.' not in name and '.shift_conv.' not in name
    }
    assert len(plain) < len(model.state_dict())
    torch.save(plain, tmp_path / 'a.pth')
    check_fit(model, str(tmp_path / 'a.pth'), complete=True)


def test_models_that_are_not_built_yet_are_not_checked():
    check_fit(dict(type='ACmixSwin'), 'nowhere.pth', complete=True)


@pytest.mark.parametrize('complete', [True, False])
def test_planted_half_of_a_checkpoint(detector, complete, tmp_path):
    items = list(detector.state_dict().items())
    torch.save(dict(state_dict=dict(items[: len(items) // 2])), tmp_path / 'half.pth')
    if not complete:  # such as a backbone and a neck, to train another head
        check_fit(detector, str(tmp_path / 'half.pth'), complete=False)
        return
    with pytest.raises(
        ValueError, match=r'half.pth does not fit the model: \d+ of the \d+ entr'
    ) as error:
        check_fit(detector, str(tmp_path / 'half.pth'), complete=True)
    assert '--allow-missing' in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('complete', [True, False])
@pytest.mark.parametrize('content', [RESNET, SWIN, WEIGHTS, {'model': RESNET}])
def test_planted_checkpoint_of_which_nothing_fits(detector, complete, content, tmp_path):
    torch.save(content, tmp_path / 'a.pth')
    before = detector.backbone.layer1[0].conv1.weight.clone()
    with pytest.raises(ValueError, match='Give a checkpoint of the whole model'):
        check_fit(detector, str(tmp_path / 'a.pth'), complete)
    assert torch.equal(detector.backbone.layer1[0].conv1.weight, before)


def test_planted_shape(detector, tmp_path):
    state_dict = detector.state_dict() | {'head.weight': torch.ones(5, 3)}
    torch.save(state_dict, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'1 of the \d+ entries .* another shape \(head.weight\)'):
        check_fit(detector, str(tmp_path / 'a.pth'), complete=True)


@pytest.mark.parametrize(
    ('kind', 'sizes', 'there', 'here'),
    [
        (
            'ACmixSwin',
            dict(embed_dims=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)),
            dict(window_size=7),
            dict(window_size=5),
        ),
        (
            'ACmixPVT',
            dict(embed_dims=16, num_layers=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)),
            dict(pretrain_img_size=64),
            dict(pretrain_img_size=128),
        ),
    ],
)
def test_weights_that_a_load_hook_interpolates_are_not_missing(kind, sizes, there, here, tmp_path):
    def build(options):
        return nn.ModuleDict(dict(backbone=MODELS.build(dict(type=kind, **sizes, **options))))

    source, model = build(there).state_dict(), build(here)
    assert any(source[name].shape != value.shape for name, value in model.state_dict().items())
    torch.save(dict(state_dict=source), tmp_path / 'a.pth')
    check_fit(model, str(tmp_path / 'a.pth'), complete=True)


def test_planted_entries_that_are_no_tensors(tmp_path):
    torch.save({'weight': torch.ones(2, 3), 'bias': 5}, tmp_path / 'a.pth')
    with pytest.raises(
        ValueError, match=r"a\.pth cannot be loaded \(entry 'bias' is a int"
    ) as error:
        check_fit(nn.Linear(3, 2), str(tmp_path / 'a.pth'), complete=False)
    assert '\n' not in str(error.value).partition('To continue')[0].strip()


@pytest.mark.parametrize('content', [[1], 5, None])
def test_planted_state_dict_that_is_none(content, tmp_path):
    state_dict = nn.Linear(3, 2).state_dict()
    torch.save({'state_dict': content, 'model': state_dict}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r"a\.pth cannot be loaded \(its 'state_dict' is a "):
        check_fit(nn.Linear(3, 2), str(tmp_path / 'a.pth'), complete=False)


class WithExtraState(nn.Linear):
    def get_extra_state(self):
        return {'scale': 1}

    def set_extra_state(self, state):
        self.scale = state['scale']


def test_extra_state_that_is_no_tensor(tmp_path):
    torch.save(WithExtraState(3, 2).state_dict(), tmp_path / 'a.pth')
    check_fit(WithExtraState(3, 2), str(tmp_path / 'a.pth'), complete=True)
