import pytest
import torch

from acmix_mm.backbones import ACmixPVT
from acmix_mm.layers import SpatialReductionACmix
from acmix_mm.registry import MODELS

V2 = dict(
    patch_sizes=(7, 3, 3, 3),
    paddings=(3, 1, 1, 1),
    use_abs_pos_embed=False,
    norm_after_stage=True,
    use_conv_ffn=True,
)
LAYERS = {'T': (2, 2, 2, 2), 'S': (3, 4, 6, 3), 'M': (3, 4, 18, 3), 'L': (3, 8, 27, 3)}


def randomized(**kwargs) -> ACmixPVT:
    """A narrow backbone with mixing weights, shifts and norms away from their start."""
    torch.manual_seed(0)
    kwargs = dict(embed_dims=4, num_layers=(1, 2, 1, 1), drop_path_rate=0) | kwargs
    backbone = ACmixPVT(**kwargs)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone


@pytest.mark.parametrize('size', LAYERS)
def test_every_size_builds(size):
    with torch.device('meta'):
        backbone = ACmixPVT(num_layers=LAYERS[size])
        outs = backbone(torch.empty(1, 3, 224, 224))
    shapes = [tuple(out.shape[1:]) for out in outs]
    assert shapes == [(64, 56, 56), (128, 28, 28), (320, 14, 14), (512, 7, 7)]
    assert sum(isinstance(m, SpatialReductionACmix) for m in backbone.modules()) == sum(
        LAYERS[size]
    )


@pytest.mark.parametrize('size', [(64, 64), (237, 301), (33, 47)])
def test_every_parameter_gets_a_gradient(size):
    backbone = randomized()
    outs = backbone(torch.randn(2, 3, *size))
    shapes = [tuple(out.shape) for out in outs]
    dims = [4, 8, 20, 32]
    assert shapes == [(2, dims[i], *(side // (4 * 2**i) for side in size)) for i in range(4)]
    sum(out.square().mean() for out in outs).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize('size', [(64, 64), (33, 47)])
def test_every_parameter_of_v2_gets_a_gradient(size):
    backbone = randomized(**V2)
    outs = backbone(torch.randn(2, 3, *size))
    shapes = [
        (2, c, *(-(-side // (4 * 2**i)) for side in size)) for i, c in enumerate((4, 8, 20, 32))
    ]
    assert [tuple(out.shape) for out in outs] == shapes
    sum(out.square().mean() for out in outs).backward()
    names = [name for name, _ in backbone.named_parameters()]
    assert not any('pos_embed' in name for name in names)
    assert sum('.ffn.layers.0.1.' in name for name in names) == 2 * 5
    assert sum(name.startswith(f'stages.{i}.norm.') for name in names for i in range(4)) == 2 * 4
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_depthwise_convolutions_start_as_in_mmdet():
    """Their fan-out is that of a group: 9, not 9 times the channels as Kaiming counts it."""
    backbone = ACmixPVT(embed_dims=16, num_layers=(1, 1, 1, 1), **V2)
    backbone.init_weights()
    conv = backbone.stages[2].blocks[0].ffn.layers[0][1]
    assert conv.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    assert conv.bias.abs().max() == 0


def test_checkpointing_changes_nothing():
    x = torch.randn(2, 3, 64, 96)
    results = []
    for with_cp in (False, True):
        backbone = randomized(with_cp=with_cp, drop_path_rate=0.5, drop_rate=0.1)
        torch.manual_seed(1)
        calls = []
        backbone.stages[1].blocks[0].attn.register_forward_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        outs = backbone(x)
        sum(out.square().mean() for out in outs).backward()
        assert len(calls) == 1 + with_cp
        results.append([*outs, *(p.grad for p in backbone.parameters())])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_frozen_stages_keep_weights_and_stay_in_eval_mode():
    backbone = randomized(frozen_stages=2).train()
    sum(out.square().mean() for out in backbone(torch.randn(2, 3, 32, 32))).backward()
    for name, parameter in backbone.named_parameters():
        frozen = name.startswith(('stages.0.', 'stages.1.'))
        assert (parameter.grad is None) == frozen, name
    assert not any(m.training for i in (0, 1) for m in backbone.stages[i].modules())
    assert backbone.stages[2].training


def test_options_reach_every_layer():
    backbone = randomized(
        acmix_cfg=dict(num_conv_pairs=2, path_weights='complementary'), qkv_bias=False
    )
    layers = [m for m in backbone.modules() if isinstance(m, SpatialReductionACmix)]
    assert len(layers) == 5
    assert [layer.sr_ratio for layer in layers] == [8, 4, 4, 2, 1]
    for layer in layers:
        assert layer.mix.weights == 'complementary'
        assert len(layer.shift_conv.fc_weight) == 2
        assert layer.qkv.bias is None


def test_drop_path_grows_over_the_blocks():
    backbone = randomized(drop_path_rate=0.4)
    rates = [block.drop_path.drop_prob for stage in backbone.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_out_indices():
    x = torch.randn(1, 3, 64, 64)
    every, some = randomized().eval()(x), randomized(out_indices=(1, 3)).eval()(x)
    assert len(some) == 2
    assert torch.equal(some[0], every[1])
    assert torch.equal(some[1], every[3])


def test_shifts_survive_the_default_initialiser():
    backbone = MODELS.build(dict(type='ACmixPVT', embed_dims=8, num_layers=(1, 1, 1, 1)))
    backbone.init_weights()
    layer = backbone.stages[2].blocks[0].attn
    assert torch.equal(layer.shift_conv.kernel[0], torch.eye(9).view(9, 3, 3))
    assert layer.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (
            dict(num_layers=(1, 1)),
            r'num_layers must have 4 values, .* got \(1, 1\)',
        ),
        (dict(out_indices=(1, 4)), r'out_indices must be stages from 0 to 3, got \(1, 4\)'),
        (dict(out_indices=()), r'out_indices must be stages from 0 to 3, got \(\)'),
        (dict(frozen_stages=5), r'frozen_stages must be -1 \(none\) or 0 to 4, got 5'),
        (dict(out_indices=[-1]), r'out_indices must be stages from 0 to 3, got \[-1\]'),
        (
            dict(pretrain_img_size=(3, 224, 224)),
            r'pretrain_img_size must be the side of a square, or height .* got \(3, 224, 224\)',
        ),
        (dict(pretrain_img_size=0), 'pretrain_img_size must be .* got 0'),
        (dict(arch=dict(depths=(1, 1, 1, 1))), r"arch must have the keys \['num_layers'\], got"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=f'ACmixPVT: {message}'):
        ACmixPVT(**kwargs)


def test_image_too_small():
    with pytest.raises(ValueError, match='7x9 tokens is too small to be reduced by sr_ratio=8'):
        randomized()(torch.randn(1, 3, 31, 39))
