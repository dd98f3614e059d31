"""Every backbone in a stock detector and segmentor, named as plainly as mmdet's own."""

import pytest
import torch
from mmengine.hub import get_config
from mmengine.registry import DefaultScope

from acmix_mm.registry import MODELS

BACKBONES: dict[str, dict] = {
    'ACmixResNet': dict(depth=26, base_channels=8),
    'ACmixPVT': dict(embed_dims=4, num_layers=(1, 1, 1, 1)),
    'ACmixSAN': dict(depth=10, base_channels=32),
    'ACmixSwin': dict(embed_dims=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 4)),
}


@pytest.fixture(params=BACKBONES)
def backbone(request) -> dict:
    return dict(type=request.param, **BACKBONES[request.param])


def channels(backbone: dict) -> list[int]:
    with torch.device('meta'):
        outs = MODELS.build(backbone)(torch.empty(1, 3, 64, 64))
    assert [out.shape[2:] for out in outs] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    return [out.shape[1] for out in outs]


def build(base: str, backbone: dict, scope: str, **options):
    pytest.importorskip(f'{scope}.models')
    registry = pytest.importorskip(f'{scope}.registry')
    cfg = get_config(f'{scope}::_base_/models/{base}.py')
    cfg.model.backbone = backbone
    cfg.model.neck.in_channels = channels(backbone)
    cfg.merge_from_dict({f'model.{name}': value for name, value in options.items()})
    with DefaultScope.overwrite_default_scope(scope):
        model = registry.MODELS.build(cfg.model)
        model.init_weights()
    return model


def test_detector(backbone):
    narrow = {'neck.out_channels': 16, 'bbox_head.in_channels': 16, 'bbox_head.feat_channels': 16}
    # All four levels go in, so that all of the backbone gets gradients.
    model = build('retinanet_r50_fpn', backbone, 'mmdet', **narrow, **{'neck.start_level': 0})
    assert type(model.backbone).__name__ == backbone['type']
    scores, boxes = model(torch.rand(1, 3, 64, 96), mode='tensor')
    assert len(scores) == len(boxes) == 5
    sum(out.square().mean() for out in (*scores, *boxes)).backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


def test_segmentor_passes_pretrained_on(backbone, tmp_path):
    """mmseg's segmentors set the backbone's argument of that name."""
    source = MODELS.build(backbone)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.fill_(0.25)
    path = tmp_path / 'backbone.pth'
    torch.save(source.state_dict(), path)
    head = {'decode_head.norm_cfg': dict(type='BN'), 'decode_head.num_classes': 5}
    model = build('fpn_r50', backbone, 'mmseg', pretrained=str(path), **head)
    assert {p.unique().item() for p in model.backbone.parameters()} == {0.25}


@pytest.mark.parametrize(
    ('error', 'kwargs', 'message'),
    [
        (TypeError, dict(pretrained=5), 'pretrained must be .* None, got 5'),
        (
            ValueError,
            dict(pretrained='a.pth', init_cfg=dict(type='Normal')),
            "pretrained='a.pth' and init_cfg=.* both name initial weights",
        ),
    ],
)
def test_pretrained_is_a_path_and_the_only_source(backbone, error, kwargs, message):
    with pytest.raises(error, match=f'{backbone["type"]}: {message}'):
        MODELS.build(backbone | kwargs)


def test_segmentor(backbone):
    narrow = {'neck.out_channels': 16, 'decode_head.in_channels': [16] * 4}
    head = {'decode_head.norm_cfg': dict(type='BN'), 'decode_head.num_classes': 5}
    model = build('fpn_r50', backbone, 'mmseg', pretrained=None, **narrow, **head)
    assert type(model.backbone).__name__ == backbone['type']
    assert model(torch.rand(2, 3, 64, 96), mode='tensor').shape == (2, 5, 16, 24)
