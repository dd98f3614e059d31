from contextlib import nullcontext

import pytest
import torch
from golden import Golden, relative_error
from mmengine.registry import DefaultScope
from torch import nn
from upstream import mmpretrain

from acmix_mm.backbones import ACmixSwin
from acmix_mm.layers import WindowACmix
from acmix_mm.ops import use_backend
from acmix_mm.registry import MODELS

SIZES = {
    'T': dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    'S': dict(embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    'B': dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
}
NARROW = dict(embed_dims=12, depths=(2, 1, 3, 2), drop_path_rate=0)


def randomized(**kwargs) -> ACmixSwin:
    """A narrow backbone with mixing weights, shifts and norms away from their start."""
    torch.manual_seed(0)
    backbone = ACmixSwin(**(NARROW | kwargs))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone


@pytest.mark.parametrize('backend', ['dense', None])
def test_equals_released_swin(backend):
    golden = Golden.load('swin_tiny_like')
    args = golden.args
    backbone = ACmixSwin(
        embed_dims=args['embed_dim'],
        depths=args['depths'],
        num_heads=args['num_heads'],
        window_size=args['window_size'],
        out_indices=(3,),
    )
    backbone.load_state_dict(golden.state_dict)
    backbone.double().eval()
    stages = []
    for stage in backbone.stages:
        stage.register_forward_hook(lambda _, __, out: stages.append(out[1]))
    with torch.no_grad(), use_backend(backend, 'shift_conv') if backend else nullcontext():
        (out,) = backbone(golden.input)
    assert len(stages) == 4
    for i, tokens in enumerate(stages):
        sample = tokens.flatten()[:: max(1, tokens.numel() // 4000)]
        assert relative_error(sample, golden.arrays[f'stage{i}']) <= 1e-6
    assert relative_error(out.mean((2, 3)), golden.arrays['features']) <= 1e-6


@pytest.mark.parametrize(('size', 'millions'), [('T', 28.650), ('S', 50.345)])
def test_parameter_counts(size, millions):
    """Of the released code, with its one norm and the 1000-class head."""
    with torch.device('meta'):
        backbone = ACmixSwin(**SIZES[size], out_indices=(3,))
        head = nn.Linear(768, 1000)
    count = sum(p.numel() for module in (backbone, head) for p in module.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=5e-4)


@pytest.mark.parametrize('size', SIZES)
def test_every_size_builds(size):
    with torch.device('meta'):
        backbone = ACmixSwin(**SIZES[size])
        outs = backbone(torch.empty(1, 3, 224, 224))
    width = SIZES[size]['embed_dims']
    assert [tuple(out.shape[1:]) for out in outs] == [
        (width * 2**i, 56 // 2**i, 56 // 2**i) for i in range(4)
    ]
    layers = [m for m in backbone.modules() if isinstance(m, WindowACmix)]
    assert len(layers) == sum(SIZES[size]['depths'])


@pytest.mark.parametrize('size', [(64, 64), (237, 301), (33, 47), (5, 3)])
def test_every_parameter_gets_a_gradient(size):
    backbone = randomized()
    outs = backbone(torch.randn(2, 3, *size))
    shapes = [(2, 12 * 2**i, *(-(-side // (4 * 2**i)) for side in size)) for i in range(4)]
    assert [tuple(out.shape) for out in outs] == shapes
    assert all(out.is_contiguous() for out in outs)
    sum(out.square().mean() for out in outs).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or min(size) < 33, name


def test_checkpointing_changes_nothing():
    x = torch.randn(2, 3, 64, 96)
    results = []
    for with_cp in (False, True):
        rates = dict(drop_path_rate=0.5, drop_rate=0.1, attn_drop_rate=0.1)
        backbone = randomized(with_cp=with_cp, **rates)
        torch.manual_seed(1)
        outs = backbone(x)
        sum(out.square().mean() for out in outs).backward()
        results.append([*outs, *(p.grad for p in backbone.parameters())])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 4])
def test_frozen_stages_keep_weights_and_stay_in_eval_mode(frozen_stages):
    backbone = randomized(frozen_stages=frozen_stages, use_abs_pos_embed=True).train()
    outs = backbone(torch.randn(2, 3, 32, 32, requires_grad=True))
    sum(out.square().mean() for out in outs).backward()
    frozen = ('patch_embed.', 'absolute_pos_embed') if frozen_stages >= 0 else ()
    for i in range(max(frozen_stages, 0)):
        frozen += (f'stages.{i}.', f'norm{i}.')
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name
    for i, stage in enumerate(backbone.stages):
        assert all(m.training == (i >= frozen_stages) for m in stage.modules())


def test_out_indices_have_a_norm_each():
    x = torch.randn(1, 3, 64, 64)
    every, some = randomized(), randomized(out_indices=(1, 3))
    assert {n for n, _ in some.named_children() if n.startswith('norm')} == {'norm1', 'norm3'}
    some.load_state_dict(every.state_dict(), strict=False)
    expected = every(x)
    assert [torch.equal(out, expected[i]) for out, i in zip(some(x), (1, 3), strict=True)]
    assert len(some(x)) == 2


def test_outputs_after_the_patch_mergings():
    """As in mmpretrain: each output is the input of the next stage, the last one as it is."""
    x = torch.randn(1, 3, 64, 64)
    backbone = randomized(out_after_downsample=True)
    assert backbone.num_features == [24, 48, 96, 96]
    merged = []
    for stage in backbone.stages:
        stage.register_forward_hook(lambda *args: merged.append(args[2][0]))
    for i, out in enumerate(backbone(x)):
        expected = getattr(backbone, f'norm{i}')(merged[i]).permute(0, 3, 1, 2)
        torch.testing.assert_close(out, expected)
        assert out.shape[1] == backbone.num_features[i]


@pytest.mark.parametrize('norm', ['BN', 'BN1d', 'SyncBN'])
@pytest.mark.parametrize('patch_norm', [True, False])
def test_batch_norm_does_not_take_tokens(norm, patch_norm):
    """So norm_eval, which is about BatchNorm, cannot have an effect."""
    backbone = randomized(norm_cfg=dict(type=norm), patch_norm=patch_norm, norm_eval=True)
    with pytest.raises((ValueError, RuntimeError), match=r'expected|running_mean'):
        backbone(torch.randn(1, 3, 64, 64))


def test_names_of_mmpretrain():
    small = dict(embed_dims=12, depths=[1, 1, 1, 1], num_heads=[1, 2, 3, 4])
    backbone = ACmixSwin(arch=small, img_size=64, use_abs_pos_embed=True, out_indices=(3,))
    assert backbone.absolute_pos_embed.shape == (1, 16 * 16, 12)
    assert [backbone.depths, backbone.num_heads] == [[1, 1, 1, 1], [1, 2, 3, 4]]
    with torch.device('meta'):
        assert ACmixSwin(arch='b').num_features == [128, 256, 512, 1024]


def test_window_size_in_stage_cfgs():
    backbone = randomized(stage_cfgs=dict(block_cfgs=dict(window_size=12)))
    layers = [m for m in backbone.modules() if isinstance(m, WindowACmix)]
    assert [(layer.window_size, layer.shift_size) for layer in layers[:2]] == [(12, 0), (12, 6)]
    assert {layer.window_size for layer in layers} == {12}


def test_equal_height_and_width_are_a_side():
    backbone = randomized(window_size=(5, 5), patch_size=[4, 4], pretrain_img_size=(64,))
    assert backbone.stages[0].blocks[0].attn.window_size == 5
    assert torch.equal(randomized(window_size=5).state_dict()['norm3.bias'], backbone.norm3.bias)


@pytest.mark.parametrize('mode', ['bicubic', 'bilinear'])
def test_absolute_position_embedding_is_interpolated_as_in_mmpretrain(mode):
    resize = mmpretrain('models.utils').resize_pos_embed
    backbone = randomized(use_abs_pos_embed=True, pretrain_img_size=64, interpolate_mode=mode)
    expected = resize(backbone.absolute_pos_embed, (16, 16), (10, 13), mode, 0)
    torch.testing.assert_close(backbone._position((10, 13)), expected)


def test_options_reach_every_layer():
    acmix_cfg = dict(
        num_conv_pairs=2, path_weights='complementary', roll_conv=False, mask_padding=True
    )
    backbone = randomized(acmix_cfg=acmix_cfg, qkv_bias=False, window_size=5)
    layers = [m for m in backbone.modules() if isinstance(m, WindowACmix)]
    assert [layer.shift_size for layer in layers] == [0, 2, 0, 0, 2, 0, 0, 2]
    assert [layer.num_heads for layer in layers] == [3, 3, 6, 12, 12, 12, 24, 24]
    for layer in layers:
        assert layer.mix.weights == 'complementary'
        assert len(layer.shift_conv.fc_weight) == 2
        assert layer.qkv.bias is None
        assert (layer.window_size, layer.roll_conv, layer.mask_padding) == (5, False, True)


def test_absolute_position_embedding_is_interpolated():
    backbone = randomized(use_abs_pos_embed=True, pretrain_img_size=(64, 96))
    assert backbone.absolute_pos_embed.shape == (1, 16 * 24, 12)
    assert torch.equal(backbone._position((16, 24)), backbone.absolute_pos_embed)
    with torch.no_grad():
        # Grows by 1 from column to column: on twice the columns by about half of it.
        backbone.absolute_pos_embed.copy_(torch.arange(24.0).repeat(16).view(1, -1, 1))
    twice = backbone._position((10, 48)).view(10, 48, 12)[:, 6:-6]
    torch.testing.assert_close(twice.diff(dim=1), torch.full((10, 35, 12), 0.5), rtol=0, atol=0.1)
    assert backbone(torch.randn(1, 3, 40, 52))[0].shape == (1, 12, 10, 13)


def test_patch_norm_and_drop_path():
    backbone = randomized(patch_norm=False, drop_path_rate=0.7)
    assert backbone.patch_embed.norm is None
    assert backbone.stages[0].downsample.norm is None
    rates = [block.drop_path.drop_prob for stage in backbone.stages for block in stage.blocks]
    assert rates == pytest.approx([0.1 * i for i in range(8)], abs=1e-6)


def test_shifts_survive_the_default_initialiser():
    backbone = MODELS.build(dict(type='ACmixSwin', embed_dims=24, depths=(1, 1, 1, 1)))
    backbone.init_weights()
    layer = backbone.stages[2].blocks[0].attn
    assert torch.equal(layer.shift_conv.kernel[0], torch.eye(9).view(9, 3, 3))
    assert layer.mix.alpha.item() == layer.mix.beta.item() == 0.5
    assert layer.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(num_heads=(3, 6)), r'num_heads must have 4 values, one for each stage, got \(3, 6\)'),
        (dict(strides=(4, 2)), r'strides must have 4 values, one for each stage, got \(4, 2\)'),
        (dict(out_indices=(1, 4)), r'out_indices must be stages from 0 to 3, got \(1, 4\)'),
        (dict(frozen_stages=5), r'frozen_stages must be -1 \(none\) or 0 to 4, got 5'),
        (dict(patch_size=8), r'strides\[0\] must be patch_size=8, .* got 4'),
        (dict(out_indices=[-1]), r'out_indices must be stages from 0 to 3, got \[-1\]'),
        (dict(window_size=(7, 8)), r'window_size must be square, got \(7, 8\)'),
        (dict(window_size=(14, 14, 14, 7)), r'window_size must be the side .* got \(14, 14, 14, 7'),
        (dict(patch_size=(4, 2)), r'patch_size must be square, got \(4, 2\)'),
        (
            dict(pretrain_img_size=(3, 224, 224)),
            r'pretrain_img_size must be the side of a square, or height .* got \(3, 224, 224\)',
        ),
        (
            dict(pretrain_img_size=384, img_size=256),
            'img_size=256 and pretrain_img_size=384 are names of one argument',
        ),
        (
            dict(window_size=8, stage_cfgs=dict(block_cfgs=dict(window_size=12))),
            'window_size=8 and stage_cfgs=.* both set the size of the windows',
        ),
        (
            dict(stage_cfgs=dict(block_cfgs=dict(window_size=7, ffn_cfgs={}))),
            r'stage_cfgs must be dict\(block_cfgs=dict\(window_size=...\)\), .* got .*ffn_cfgs',
        ),
        (
            dict(stage_cfgs=[dict(block_cfgs=dict(window_size=7))] * 4),
            r'stage_cfgs must be .*, for all stages alike, got \[',
        ),
        (dict(arch='huge'), r"arch must be one of \['tiny', .*\], got 'huge'"),
        (
            dict(arch=dict(embed_dims=96)),
            r"arch must have the keys \['embed_dims', 'depths', 'num_heads'\], got \['embed",
        ),
    ],
)
def test_refuses(kwargs, message):
    with pytest.raises(ValueError, match=f'ACmixSwin: {message}'):
        ACmixSwin(**kwargs)


class TestPlainSwin:
    """With the weights of a plain Swin, ACmixSwin is that Swin."""

    @staticmethod
    def plain(**kwargs):
        swin = pytest.importorskip('mmdet.models').SwinTransformer(**(NARROW | kwargs))
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in swin.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        swin.eval()  # returns nothing
        return swin.double()

    @staticmethod
    def from_file(path, checkpoint, **kwargs) -> ACmixSwin:
        torch.save(checkpoint, path)
        init_cfg = dict(type='Pretrained', checkpoint=str(path))
        backbone = ACmixSwin(**(NARROW | kwargs), init_cfg=init_cfg)
        backbone.init_weights()
        return backbone.double().eval()

    @pytest.mark.parametrize('size', [(64, 64), (41, 200)])
    def test_equals_mmdet_on_small_maps(self, tmp_path, size):
        """It shifts windows in all maps, however small."""
        plain, options = self.plain(), dict(pad_small_map=True)
        backbone = self.from_file(tmp_path / 'swin.pth', plain.state_dict(), **options)
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            for ours, theirs in zip(backbone(x), plain(x), strict=True):
                assert relative_error(ours, theirs) <= 1e-6

    @pytest.mark.parametrize('options', [dict(pad_small_map=True), dict(out_after_downsample=True)])
    def test_equals_mmpretrain(self, tmp_path, options):
        swin = mmpretrain('models.backbones').SwinTransformer
        arch = dict(embed_dims=12, depths=[2, 1, 3, 2], num_heads=[3, 6, 12, 24])
        options = dict(arch=arch, out_indices=(0, 2, 3)) | options
        plain = swin(**options).double()
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        plain.eval()  # returns nothing
        torch.save(plain.state_dict(), tmp_path / 'swin.pth')
        backbone = ACmixSwin(**options, pretrained=str(tmp_path / 'swin.pth'))
        backbone.init_weights()
        backbone.double().eval()
        # Without pad_small_map mmpretrain refuses maps smaller than a window, here of 7 pixels.
        # The last maps, of 7x14, are not shifted without it.
        x = torch.randn(1, 3, 224, 448, dtype=torch.float64)
        with torch.no_grad():
            for ours, theirs in zip(backbone(x), plain(x), strict=True):
                assert relative_error(ours, theirs) <= 1e-6

    @pytest.mark.parametrize('size', [(237, 301), (253, 390)])
    @pytest.mark.parametrize('form', ['mm', 'microsoft'])
    def test_equals_mmdet(self, tmp_path, size, form):
        plain = self.plain()
        state_dict = plain.state_dict()
        if form == 'mm':
            checkpoint = dict(state_dict={f'backbone.{k}': v for k, v in state_dict.items()})
        else:
            checkpoint = dict(model=to_microsoft(state_dict) | {'head.weight': torch.zeros(2, 96)})
        backbone = self.from_file(tmp_path / 'swin.pth', checkpoint)
        if form == 'microsoft':  # it has but one norm, that of the last output
            for i in range(3):
                getattr(backbone, f'norm{i}').load_state_dict(
                    getattr(plain, f'norm{i}').state_dict()
                )
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            for ours, theirs in zip(backbone(x), plain(x), strict=True):
                assert relative_error(ours, theirs) <= 1e-6

    def test_the_convolution_path_learns_from_there(self, tmp_path):
        backbone = self.from_file(tmp_path / 'swin.pth', self.plain().state_dict())
        layers = [m for m in backbone.modules() if isinstance(m, WindowACmix)]
        x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.01)
        sum(out.square().mean() for out in backbone(x)).backward()
        for layer in layers:
            assert layer.mix.alpha == 1
            assert layer.mix.beta == 0
            assert layer.mix.beta.grad.abs() > 0
        optimizer.step()
        sum(out.square().mean() for out in backbone(x)).backward()
        for layer in layers:
            assert layer.mix.beta != 0
            assert layer.shift_conv.kernel.grad.abs().sum() > 0

    def test_absolute_position_embedding(self, tmp_path):
        options = dict(use_abs_pos_embed=True, pretrain_img_size=252)
        plain = self.plain(**options)
        backbone = self.from_file(tmp_path / 'swin.pth', plain.state_dict(), **options)
        x = torch.randn(1, 3, 252, 252, dtype=torch.float64)
        with torch.no_grad():
            for ours, theirs in zip(backbone(x), plain(x), strict=True):
                assert relative_error(ours, theirs) <= 1e-6


def to_microsoft(state_dict: dict) -> dict:
    """Names and orders of Microsoft's code for a plain Swin of mmdet."""
    renamed = {}
    for name, tensor in state_dict.items():
        if 'downsample' in name:
            # (C, 2, 2) of nn.Unfold to (column, row, C), which they concatenate
            pixels = tensor.unflatten(-1, (-1, 2, 2))
            tensor = pixels.movedim(-3, -1).transpose(-3, -2).flatten(-3)
        for ours, theirs in {
            'stages.': 'layers.',
            'ffn.layers.0.0.': 'mlp.fc1.',
            'ffn.layers.1.': 'mlp.fc2.',
            'attn.w_msa.': 'attn.',
            'projection.': 'proj.',
            'norm3.': 'norm.',
        }.items():
            name = name.replace(ours, theirs)
        if not name.startswith(('norm0.', 'norm1.', 'norm2.')):
            renamed[name] = tensor
    return renamed


def test_detector_loads_a_plain_one():
    models = pytest.importorskip('mmdet.registry').MODELS
    pytest.importorskip('mmdet.models')
    detector = dict(
        type='RetinaNet',
        neck=dict(type='FPN', in_channels=[12, 24, 48, 96], out_channels=8, num_outs=4),
        bbox_head=dict(type='RetinaHead', num_classes=2, in_channels=8, feat_channels=8),
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        plain = models.build(detector | dict(backbone=dict(type='SwinTransformer', **NARROW)))
        ours = models.build(detector | dict(backbone=dict(type='ACmixSwin', **NARROW)))
    ours.load_state_dict(plain.state_dict())
    plain.eval()
    ours.eval()
    x = torch.randn(1, 3, 237, 301)
    with torch.no_grad():
        for a, b in zip(ours.extract_feat(x), plain.extract_feat(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
