import errno
import hashlib

import hostile
import numpy as np
import pytest
import torch
from golden import Golden
from mmengine.runner import CheckpointLoader

from acmix_mm import atomic_write
from acmix_mm.backbones import ACmixSwin
from acmix_mm.checkpoints.files import read_checkpoint
from acmix_mm.runtime.mmengine_patches import load_safetensors


@pytest.fixture(scope='module')
def released() -> dict:
    return Golden.load('swin_tiny_like').state_dict


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_convert(tool, tmp_path, capsys, monkeypatch, released, suffix):
    source, target = tmp_path / 'released.pth', tmp_path / f'ours{suffix}'
    extra = {'layers.0.blocks.0.attn.temperature': torch.ones(1)}
    torch.save({'model': released | extra, 'epoch': 300}, source)
    tool('checkpoints/convert.py').main([str(source), str(target)])

    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f'{source}: released Swin-ACmix classifier, for ACmixSwin'
    mapped = '  layers.0.blocks.0.attn.rate1 -> stages.0.blocks.0.attn.mix.alpha'
    assert mapped in printed
    assert '  head.weight dropped: classifier head' in printed
    assert '  layers.0.blocks.0.attn.temperature not converted: unknown name' in printed
    assert printed[-1] == f'{target}: 159 entries from 159; 2 dropped, 1 unknown'
    assert len(printed) == 2 + len(released | extra)

    options = dict(embed_dims=24, depths=(2, 2, 2, 2), out_indices=(3,))
    expected = ACmixSwin(**options)
    expected.load_state_dict(released)
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    load_safetensors()  # torch itself loads them only in newer versions
    backbone = ACmixSwin(**options, init_cfg=dict(type='Pretrained', checkpoint=str(target)))
    backbone.init_weights()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], tensor), name


def test_convert_takes_the_backbone_of_a_detector(tool, tmp_path, capsys, released):
    source, target = tmp_path / 'detector.pth', tmp_path / 'ours.pth'
    detector = {f'backbone.{k}': v for k, v in released.items()} | {'neck.w': torch.ones(1)}
    torch.save({'state_dict': detector}, source)
    tool('checkpoints/convert.py').main([str(source), str(target)])
    assert '  neck.w dropped: not part of the backbone' in capsys.readouterr().out.splitlines()
    checkpoint = read_checkpoint(target)
    assert len(checkpoint['state_dict']) == 159
    assert checkpoint['meta']['backbone'] == 'ACmixSwin'


class RunsCode:
    def __reduce__(self):
        return eval, ('1',)


@pytest.mark.parametrize(
    ('checkpoint', 'says'),
    [
        ({'model': {'transformer.wte': torch.ones(1)}}, r'has an unknown format .*transformer.wte'),
        ({'epoch': 3}, 'no state dict in .*in.pth'),
        ({'model': {'a': RunsCode()}}, 'is refused: it contains eval'),
        (None, 'in.pth does not exist'),
    ],
)
@pytest.mark.parametrize('name', ['convert.py', 'publish.py'])
def test_what_is_no_such_file_writes_nothing(tool, tmp_path, name, checkpoint, says):
    if name == 'publish.py' and 'unknown format' in says:
        return  # publishing takes weights of any kind
    source, target = tmp_path / 'in.pth', tmp_path / 'out.pth'
    if checkpoint is not None:
        torch.save(checkpoint, source)
    with pytest.raises(SystemExit, match=says) as exit_:
        tool(f'checkpoints/{name}').main([str(source), str(target)])
    assert isinstance(exit_.value.code, str), 'a message, which Python ends with status 1'
    assert [path.name for path in tmp_path.iterdir()] == (['in.pth'] if checkpoint else [])


@pytest.mark.parametrize('name', ['convert.py', 'publish.py'])
@pytest.mark.parametrize('attack', hostile.ATTACKS, ids=lambda attack: attack.__name__)
def test_hostile_files(tool, tmp_path, released, name, attack):
    source, marker = tmp_path / 'in.pth', tmp_path / 'code-ran'
    hostile.write_checkpoint(source, attack(f'touch {marker}'), {'model': released})
    with pytest.raises(SystemExit, match=r'in\.pth is (refused|not a checkpoint)'):
        tool(f'checkpoints/{name}').main([str(source), str(tmp_path / 'out.pth')])
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize('name', ['convert.py', 'publish.py'])
def test_a_full_disk_destroys_nothing(tool, tmp_path, released, monkeypatch, name):
    source = tmp_path / 'in.pth'
    torch.save({'model': released}, source)
    before = source.read_bytes()

    def fail(path, data):
        path.write_bytes(data[:100])
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(atomic_write, '_write', fail)
    with pytest.raises(SystemExit, match=r'cannot be written: No space left on device'):
        tool(f'checkpoints/{name}').main([str(source), str(source)])
    assert source.read_bytes() == before
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize('name', ['convert.py', 'publish.py'])
@pytest.mark.parametrize('target', ['', '.', 'folder', 'file/out.pth', '/proc/out.pth'])
def test_places_that_cannot_be_written(tool, tmp_path, released, monkeypatch, name, target):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'file').touch()
    torch.save({'model': released}, 'in.pth')
    with pytest.raises(SystemExit, match='cannot be written: ') as error:
        tool(f'checkpoints/{name}').main(['in.pth', target])
    assert '\n' not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'folder', 'in.pth']


CONTAINS_ITSELF: dict = {}
CONTAINS_ITSELF['state_dict'] = CONTAINS_ITSELF


@pytest.mark.parametrize('name', ['convert.py', 'publish.py'])
@pytest.mark.parametrize(
    'content',
    [
        CONTAINS_ITSELF,
        {5: torch.ones(1)},
        {'a': torch.ones(1).expand(10**12)},
        {'a': torch.ones(1, device='meta')},
        [1, 2],
        {'state_dict': {}},
    ],
    ids=['contains itself', 'integer key', '4 TB', 'no values', 'list', 'empty'],
)
def test_odd_content(tool, tmp_path, name, content):
    torch.save(content, tmp_path / 'in.pth')
    with pytest.raises(SystemExit) as error:
        tool(f'checkpoints/{name}').main([str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth')])
    assert isinstance(error.value.code, str)
    assert [path.name for path in tmp_path.iterdir()] == ['in.pth']


def test_shapes_that_cannot_be_converted(tool, tmp_path):
    models = pytest.importorskip('mmdet.models')
    plain = models.PyramidVisionTransformer(embed_dims=8, num_layers=(1, 1, 1, 1)).state_dict()
    broken = {k: torch.rand(1, 7, 8) if 'pos_embed' in k else v for k, v in plain.items()}
    torch.save(broken, tmp_path / 'in.pth')
    with pytest.raises(SystemExit, match=r'in\.pth cannot be converted: .*7 tokens'):
        tool('checkpoints/convert.py').main([str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth')])
    assert [path.name for path in tmp_path.iterdir()] == ['in.pth']


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_publish_takes_values_of_numpy_and_says_what_is_not_finite(tool, tmp_path, capsys, suffix):
    meta = dict(epoch=np.int64(3), dataset_meta=dict(palette=np.eye(2), classes=('a', 'b')))
    weights = {'a': torch.tensor([1.0, torch.nan]), 'b': torch.ones(1)}
    torch.save(dict(state_dict=weights, meta=meta), tmp_path / 'in.pth')
    argv = [str(tmp_path / 'in.pth'), str(tmp_path / f'out{suffix}')]
    path = tool('checkpoints/publish.py').main(argv)
    published = read_checkpoint(path)['meta']
    assert published['epoch'] == 3
    assert published['dataset_meta']['palette'] == [[1, 0], [0, 1]]
    assert 'Warning: 1 entries have NaN or infinite values, such as a.' in capsys.readouterr().out
    if suffix == '.pth':
        torch.load(path, weights_only=True)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_publish(tool, tmp_path, capsys, suffix):
    weights = {'backbone.a': torch.randn(50, 50), 'head.b': torch.randn(3)}
    optimizer = {'state': {i: {'exp_avg': torch.randn(50, 50)} for i in range(2)}}
    meta = dict(epoch=12, seed=7, dataset_meta=dict(classes=('cat', 'dog')))
    training = dict(state_dict=weights, optimizer=optimizer, message_hub={}, meta=meta)
    torch.save(training, tmp_path / 'epoch_12.pth')
    path = tool('checkpoints/publish.py').main(
        [str(tmp_path / 'epoch_12.pth'), str(tmp_path / f'mine{suffix}')]
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f'mine-{digest[:8]}{suffix}'
    published = read_checkpoint(path)
    assert set(published) == {'state_dict', 'meta'}
    assert set(published['meta']) == {'epoch', 'dataset_meta'}
    assert all(torch.equal(published['state_dict'][name], weights[name]) for name in weights)
    assert path.stat().st_size < (tmp_path / 'epoch_12.pth').stat().st_size / 2
    assert str(path) in capsys.readouterr().out
