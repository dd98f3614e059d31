"""Balanced paths, in every family and in a training."""

from contextlib import nullcontext

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

import acmix_mm  # noqa: F401  registers the hook
from acmix_mm.backbones import ACmixPVT, ACmixResNet, ACmixSAN, ACmixSwin
from acmix_mm.hooks import PathShares, balance_paths
from acmix_mm.layers import ACmix


def shares_of(model, run):
    shares = PathShares(model)
    with torch.no_grad(), shares.measuring():
        run()
    return shares.read()


@pytest.mark.parametrize(
    'build',
    [
        lambda: ACmixResNet(26, base_channels=8, norm_eval=False),
        lambda: ACmixSAN(10, base_channels=32, norm_eval=False),
        lambda: ACmixPVT(embed_dims=16, drop_path_rate=0.1),
        lambda: ACmixSwin(embed_dims=24, num_heads=(1, 2, 4, 8), drop_path_rate=0.1),
    ],
    ids=['resnet', 'san', 'pvt', 'swin'],
)
def test_paths_are_equally_loud_and_nothing_else_changes(build):
    torch.manual_seed(0)
    model, x = build().train(), torch.rand(2, 3, 64, 96)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    balance_paths(model, lambda: model(x))
    assert torch.equal(torch.get_rng_state(), state)
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {name for name in before if name.endswith(('mix.alpha', 'mix.beta'))}
    with torch.random.fork_rng():
        shares = shares_of(model, lambda: model(x))
    assert len(shares) >= 8
    for share in shares.values():
        assert share.convolution_share == pytest.approx(0.5, abs=0.04)
        assert share.alpha + share.beta == pytest.approx(1)


def test_weights_that_are_not_learned_remain():
    layers = nn.Sequential(*[ACmix(8, 8, path_weights=w) for w in ('complementary', (1, 3))])
    x = torch.rand(2, 8, 9, 9)
    balance_paths(layers, lambda: layers(x))
    shares = shares_of(layers, lambda: layers(x))
    assert shares['0'].convolution_share == pytest.approx(0.5, abs=1e-3)
    assert (layers[1].mix.alpha, layers[1].mix.beta) == (1, 3)


def test_frozen_weights_remain():
    layers = nn.Sequential(ACmix(8, 8).requires_grad_(False), ACmix(8, 8))
    x = torch.rand(2, 8, 9, 9)
    balance_paths(layers, lambda: layers(x))
    assert (layers[0].mix.alpha.item(), layers[0].mix.beta.item()) == (0.5, 0.5)
    assert layers[1].mix.alpha.item() != 0.5


def test_random_state_of_no_other_gpu_is_touched(monkeypatch):
    asked = []

    def fork_rng(devices=None):
        asked.append(devices)
        return nullcontext()

    monkeypatch.setattr(torch.random, 'fork_rng', fork_rng)
    layer, x = ACmix(8, 8), torch.rand(2, 8, 9, 9)
    balance_paths(layer, lambda: layer(x))
    assert asked == [[]]


def test_processes_take_their_mean(monkeypatch):
    layer, x = ACmix(8, 8), torch.rand(2, 8, 9, 9)
    monkeypatch.setitem(
        balance_paths.__globals__, 'all_reduce', lambda alphas, op: alphas.fill_(0.25)
    )
    balance_paths(layer, lambda: layer(x))
    assert (layer.mix.alpha.item(), layer.mix.beta.item()) == (0.25, 0.75)


def test_what_cannot_be_balanced():
    x = torch.rand(2, 8, 9, 9)
    layer = ACmix(8, 8, path_weights=(1, 0))
    with pytest.raises(ValueError, match='no ACmix layer that ran has learned path weights'):
        balance_paths(layer, lambda: layer(x))
    layers = nn.Sequential(ACmix(8, 8))
    nn.init.zeros_(layers[0].shift_conv.kernel)
    with pytest.raises(ValueError, match=r'the paths of 0 cannot be balanced: .*_share=0\.0'):
        balance_paths(layers, lambda: layers(x))


class _Model(BaseModel):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x, mode='loss'):
        return dict(loss=self.layer(x).square().mean())


def train(work_dir, layer, data, iterations, lr=0.1, **options):
    runner = Runner(
        _Model(layer),
        str(work_dir),
        train_dataloader=dict(
            dataset=[dict(x=x) for x in data],
            batch_size=2,
            sampler=dict(type='InfiniteSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=lr)),
        default_hooks=dict(
            balance=dict(type='BalancePathsHook'),
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1),
        ),
        default_scope='mmengine',
        experiment_name=work_dir.name,
        log_level='ERROR',
        **options,
    )
    runner.train()


def test_hook_balances_on_the_first_batch_alone(tmp_path):
    data = [torch.rand(8, 9, 9) * 2**i for i in range(4)]
    layer = ACmix(8, 8)
    train(tmp_path, layer, data, 1, lr=0)
    first = torch.stack(data[:2])
    share = shares_of(layer, lambda: layer(first))['']
    assert share.convolution_share == pytest.approx(0.5, abs=1e-3)
    assert share.alpha != 0.5
    alpha = layer.mix.alpha.item()
    train(tmp_path, layer, data, 2, lr=0, load_from=str(tmp_path / 'iter_1.pth'), resume=True)
    assert layer.mix.alpha.item() == alpha, 'a training that is resumed is left as it is'


def test_hook_says_who_complains(tmp_path):
    layer = ACmix(8, 8, path_weights=(0, 1))
    with pytest.raises(ValueError, match='BalancePathsHook: no ACmix layer'):
        train(tmp_path, layer, [torch.rand(8, 9, 9)] * 4, 1)
