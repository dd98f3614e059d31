import pytest
import torch

from acmix_mm.backbones import ACmixSAN
from acmix_mm.layers import PatchwiseACmix
from acmix_mm.registry import MODELS


class _Small(ACmixSAN):
    blocks_of_depth = {10: (1, 1, 2, 1, 1)}


def randomized(**kwargs) -> ACmixSAN:
    """A narrow, shallow backbone with mixing weights, shifts and norms away from their start."""
    torch.manual_seed(0)
    backbone = _Small(**dict(depth=10, base_channels=32, norm_eval=False) | kwargs)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if name.endswith(('alpha', 'beta', 'kernel', 'bias')):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone


@pytest.mark.parametrize(('depth', 'blocks'), [(10, 10), (15, 15), (19, 19)])
def test_every_size_builds(depth, blocks):
    with torch.device('meta'):
        backbone = ACmixSAN(depth)
        outs = backbone(torch.empty(1, 3, 224, 224))
    shapes = [tuple(out.shape[1:]) for out in outs]
    assert shapes == [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
    assert sum(isinstance(m, PatchwiseACmix) for m in backbone.modules()) == blocks


@pytest.mark.parametrize(('batch_size', 'size'), [(2, (64, 64)), (1, (237, 301)), (2, (33, 47))])
def test_every_parameter_gets_a_gradient(batch_size, size):
    backbone = randomized(out_indices=(0, 1, 2, 3, 4))
    outs = backbone(torch.randn(batch_size, 3, *size))
    assert [out.shape[1] for out in outs] == [32, 128, 256, 512, 1024]
    for i, out in enumerate(outs, 1):
        assert out.shape[2:] == tuple(side // 2**i for side in size)
    sum(out.square().mean() for out in outs).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_checkpointing_changes_nothing():
    """Neither outputs nor gradients nor the running statistics of BatchNorm."""
    x = torch.randn(2, 3, 64, 96)
    results = []
    for with_cp in (False, True):
        backbone = randomized(with_cp=with_cp)
        calls = []
        backbone.stages[1].blocks[0].attn.register_forward_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        outs = backbone(x)
        sum(out.square().mean() for out in outs).backward()
        assert len(calls) == 1 + with_cp
        results.append([*outs, *(p.grad for p in backbone.parameters()), *backbone.buffers()])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_frozen_stages_keep_weights_and_stay_in_eval_mode():
    backbone = randomized(frozen_stages=1).train()
    sum(out.square().mean() for out in backbone(torch.randn(2, 3, 32, 32))).backward()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == name.startswith(('stem.', 'stages.0.')), name
    assert not any(m.training for m in backbone.stages[0].modules())
    assert backbone.stages[1].training


def test_norm_eval_keeps_running_statistics():
    for norm_eval in (True, False):
        backbone = randomized(norm_eval=norm_eval).train()
        before = [buffer.clone() for buffer in backbone.buffers()]
        backbone(torch.randn(2, 3, 32, 32) + 1)
        kept = [torch.equal(b, a) for a, b in zip(before, backbone.buffers(), strict=True)]
        assert all(kept) if norm_eval else not any(kept)


def test_options_reach_every_layer():
    backbone = randomized(
        acmix_cfg=dict(num_conv_pairs=2, path_weights='complementary'),
        kernels_att=(3, 5, 5, 5, 7),
    )
    layers = [m for m in backbone.modules() if isinstance(m, PatchwiseACmix)]
    assert [layer.kernel_att for layer in layers] == [3, 5, 5, 5, 5, 7]
    assert {layer.mix.weights for layer in layers} == {'complementary'}
    assert {len(layer.shift_conv.fc_weight) for layer in layers} == {2}


def test_out_indices():
    x = torch.randn(1, 3, 64, 64)
    every = randomized(out_indices=(0, 1, 2, 3, 4)).eval()(x)
    some = randomized(out_indices=(0, 3)).eval()(x)
    assert len(some) == 2
    assert torch.equal(some[0], every[0])
    assert torch.equal(some[1], every[3])


def test_shifts_survive_an_initialiser():
    init_cfg = dict(type='Kaiming', layer='Conv2d')
    backbone = MODELS.build(dict(type='ACmixSAN', depth=10, base_channels=32, init_cfg=init_cfg))
    backbone.init_weights()
    kernel = backbone.stages[3].blocks[0].attn.shift_conv.kernel
    assert torch.equal(kernel[0], torch.eye(9).view(9, 3, 3))


def test_attributes_are_those_of_the_other_backbones():
    backbone = randomized(out_indices=(0, 1, 2, 3, 4), frozen_stages=1)
    outs = backbone.eval()(torch.rand(1, 3, 32, 32))
    assert backbone.num_features == [out.shape[1] for out in outs] == [32, 128, 256, 512, 1024]
    assert (backbone.depth, backbone.base_channels, backbone.num_stages) == (10, 32, 5)
    assert (backbone.out_indices, backbone.frozen_stages) == ((0, 1, 2, 3, 4), 1)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(depth=50), r'depth must be in \[10, 15, 19\], got 50'),
        (dict(base_channels=48), 'base_channels must be a multiple of 32, got 48'),
        (
            dict(kernels_att=(3, 7)),
            r'kernels_att must have 5 values, .* got \(3, 7\)',
        ),
        (dict(out_indices=(5,)), r'out_indices must be stages from 0 to 4, got \(5,\)'),
        (dict(frozen_stages=6), r'frozen_stages must be -1 \(none\) or 0 to 5, got 6'),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=f'ACmixSAN: {message}'):
        ACmixSAN(**dict(depth=10) | kwargs)


def test_image_too_small():
    with pytest.raises(ValueError, match='at least 32x32 pixels, got 31x64'):
        randomized()(torch.randn(1, 3, 31, 64))


def test_warns_of_norms_that_keep_their_initial_statistics(monkeypatch):
    messages = []
    record = lambda message, *_, **__: messages.append(message)  # noqa: E731
    monkeypatch.setattr('acmix_mm.backbones.common.print_log', record)
    randomized(norm_eval=False).train()
    assert not messages
    backbone = randomized(norm_eval=True)
    norms = [m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    backbone.train()
    assert messages[0].startswith(f'_Small: {len(norms)} BatchNorm layers do not normalize')
