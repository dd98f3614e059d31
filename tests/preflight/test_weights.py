import pytest
import torch
from mmengine.config import Config

from acmix_mm.preflight.weights import check_checkpoints, pretrained_checkpoints

CLOSED_PORT = 'http://127.0.0.1:9/resnet.pth'


def test_local_checkpoint_is_there(tmp_path):
    torch.save({}, tmp_path / 'a.pth')
    check_checkpoints([str(tmp_path / 'a.pth')])


@pytest.mark.parametrize('path', ['missing.pth', CLOSED_PORT, 'open-mmlab://no-such-model'])
def test_missing_checkpoint(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        check_checkpoints([path])
    assert path in str(error.value)
    assert 'make demo' in str(error.value)


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
