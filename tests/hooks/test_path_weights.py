"""The shares of the paths, and the hook that logs them."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

import acmix_mm  # noqa: F401  registers the hook
from acmix_mm.backbones import ACmixPVT, ACmixResNet
from acmix_mm.hooks import PathShares, PathWeightsHook
from acmix_mm.layers import ACmix, PathMix


def test_shares_are_those_of_the_definition():
    torch.manual_seed(0)
    layer, x = ACmix(8, 8), torch.randn(2, 8, 9, 10)
    with torch.no_grad():
        layer.mix.alpha.fill_(-0.25)
        layer.mix.beta.fill_(0.75)
    paths = {}
    layer.mix.register_forward_pre_hook(lambda _, args: paths.update(both=args))
    shares = PathShares(nn.Sequential(layer))
    with shares.measuring():
        layer(x)
    attention, convolution = paths['both'][1] * 0.25, paths['both'][0]
    loud, quiet = (path.square().mean().sqrt().item() for path in (convolution, attention))
    (share,) = shares.read().values()
    assert (share.alpha, share.beta) == (-0.25, 0.75)
    assert share.convolution_share == pytest.approx(loud / (loud + quiet))
    assert shares.read() == {}, 'it was read'


@pytest.mark.parametrize(
    ('weights', 'share'), [((1, 0), 0.0), ((0, 2), 1.0), ('complementary', None)]
)
def test_layers_with_one_path_or_one_weight(weights, share):
    shares = PathShares(layer := ACmix(8, 8, path_weights=weights))
    with shares.measuring():
        layer(torch.rand(1, 8, 5, 6))
    measured = shares.read()['']
    assert measured.alpha + measured.beta == (1 if share is None else sum(weights))
    if share is None:
        assert 0 < measured.convolution_share < 1
    else:
        assert measured.convolution_share == share


def test_names_are_those_of_the_layers_and_nothing_is_left_behind():
    for network in (ACmixResNet(26, base_channels=8), ACmixPVT(embed_dims=16)):
        shares = PathShares(network)
        with torch.no_grad(), shares.measuring():
            network(torch.rand(1, 3, 64, 64))
        assert tuple(shares.read()) == shares.layers
        assert all(hasattr(network.get_submodule(name), 'shift_conv') for name in shares.layers)
        mixes = [module for module in network.modules() if isinstance(module, PathMix)]
        assert len(mixes) == len(shares.layers) > 0
        assert not any(mix._forward_pre_hooks for mix in mixes)


class _Model(BaseModel):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x, mode='loss'):
        return dict(loss=self.layer(x.unsqueeze(0)).square().mean())


def _train(work_dir: Path, layer: nn.Module, hook: dict, iterations: int = 5) -> list[dict]:
    runner = Runner(
        _Model(layer),
        str(work_dir),
        train_dataloader=dict(
            dataset=[torch.rand(8, 5, 6)] * iterations,
            batch_size=1,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[hook],
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        default_scope='mmengine',
        experiment_name=work_dir.name,
        log_level='ERROR',
    )
    runner.train()
    (file,) = work_dir.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [row for row in rows if any(key.startswith('paths/') for key in row)]


def test_hook_logs_every_few_iterations(tmp_path):
    layer = ACmix(8, 8)
    rows = _train(tmp_path, layer, dict(type='PathWeightsHook', interval=2))
    assert [row['step'] for row in rows] == [1, 2, 4]
    assert set(rows[0]) == {
        'step', 'paths/layer/alpha', 'paths/layer/beta', 'paths/layer/convolution_share',
    }  # fmt: skip
    assert rows[0]['paths/layer/alpha'] == 0.5, 'what the iteration used, before its update'
    assert rows[1]['paths/layer/alpha'] != 0.5
    assert not layer.mix._forward_pre_hooks


def test_hook_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match='interval must be at least 1, got 0'):
        PathWeightsHook(0)
    with pytest.raises(ValueError, match='the model has no ACmix layers'):
        _train(tmp_path, nn.Conv2d(8, 8, 1), dict(type='PathWeightsHook'))
