import pytest
import torch
from torch import Tensor

from acmix_mm.backbones import ACmixPVT
from acmix_mm.checkpoints import identify
from acmix_mm.checkpoints.pvt import position_map, resize_position

NARROW = dict(embed_dims=8, num_layers=(1, 2, 1, 1))
V2 = dict(
    patch_sizes=(7, 3, 3, 3),
    paddings=(3, 1, 1, 1),
    use_abs_pos_embed=False,
    norm_after_stage=True,
    use_conv_ffn=True,
)


def plain(**kwargs):
    """Return mmdet's PVT in float64, with random changes to its (float32) initial weights."""
    models = pytest.importorskip('mmdet.models')
    torch.manual_seed(0)
    network = models.PyramidVisionTransformer(**NARROW | kwargs)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return network.double().eval()


def loaded(state_dict: dict[str, Tensor], **kwargs) -> ACmixPVT:
    backbone = ACmixPVT(**NARROW | kwargs).double().eval()
    assert not any(backbone.load_state_dict(state_dict))
    return backbone


def authors_checkpoint(version: int = 1) -> dict[str, Tensor]:
    """Return random weights with the names and shapes of the authors' classifier, PVT or PVTv2."""
    torch.manual_seed(0)
    entries: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        entries[f'{name}.weight'], entries[f'{name}.bias'] = shape, shape[:1]

    in_channels = 3
    geometry = zip((8, 16, 40, 64), (1, 2, 1, 1), (8, 4, 2, 1), (8, 8, 4, 4), strict=True)
    for stage, (dims, depth, reduction, ratio) in enumerate(geometry, 1):
        patch, tokens = 4 if stage == 1 else 2, (56 // 2 ** (stage - 1)) ** 2
        if version == 1:
            entries[f'pos_embed{stage}'] = (1, tokens + (stage == 4), dims)
        else:
            patch = 7 if stage == 1 else 3
            layer(f'norm{stage}', dims)
        layer(f'patch_embed{stage}.proj', dims, in_channels, patch, patch)
        layer(f'patch_embed{stage}.norm', dims)
        for j in range(depth):
            block = f'block{stage}.{j}'
            layer(f'{block}.norm1', dims)
            layer(f'{block}.attn.q', dims, dims)
            layer(f'{block}.attn.kv', 2 * dims, dims)
            layer(f'{block}.attn.proj', dims, dims)
            if reduction > 1:
                layer(f'{block}.attn.sr', dims, dims, reduction, reduction)
                layer(f'{block}.attn.norm', dims)
            layer(f'{block}.norm2', dims)
            layer(f'{block}.mlp.fc1', ratio * dims, dims)
            layer(f'{block}.mlp.fc2', dims, ratio * dims)
            if version == 2:
                layer(f'{block}.mlp.dwconv.dwconv', ratio * dims, 1, 3, 3)
        in_channels = dims
    if version == 1:
        entries['cls_token'] = (1, 1, 64)
        layer('norm', 64)
    layer('head', 10, 64)
    return {name: torch.randn(shape) * 0.2 for name, shape in entries.items()}


def assert_same_outputs(ours: ACmixPVT, theirs, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        for mine, expected in zip(ours(x), theirs(x), strict=True):
            assert (mine - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize('size', [(224, 224), (237, 301), (64, 96)])
def test_mmdet_checkpoint_gives_the_plain_output(size):
    theirs = plain()
    assert_same_outputs(loaded(theirs.state_dict()), theirs, size)


@pytest.mark.parametrize(
    'options',
    [
        dict(use_abs_pos_embed=False),
        dict(norm_after_stage=True),
        dict(use_conv_ffn=True, mlp_ratios=(8, 8, 4, 2)),
        V2,
    ],
    ids=['no position embedding', 'norm', 'convolution', 'PVTv2'],
)
def test_mmdet_checkpoint_of_each_option_gives_the_plain_output(options):
    theirs = plain(**options)
    assert_same_outputs(loaded(theirs.state_dict(), **options), theirs, (75, 98))


def test_authors_v2_checkpoint_gives_the_plain_output():
    convert = pytest.importorskip('mmdet.models.backbones.pvt').pvt_convert
    checkpoint = authors_checkpoint(version=2)
    theirs = plain(**V2)
    theirs.load_state_dict(convert(dict(checkpoint)))
    assert_same_outputs(loaded(checkpoint, **V2), theirs, (75, 98))


def test_segformer_encoder_is_a_pvt_v2():
    """mmseg's MixVisionTransformer has the layers and the names of mmdet's PVTv2."""
    torch.manual_seed(0)
    sizes = dict(num_layers=(1, 2, 1, 1), num_heads=(1, 2, 5, 8), sr_ratios=(8, 4, 2, 1))
    theirs = pytest.importorskip('mmseg.models').MixVisionTransformer(embed_dims=8, **sizes)
    theirs.double().eval()
    ours = loaded(theirs.state_dict(), **V2, mlp_ratios=(4, 4, 4, 4))
    assert_same_outputs(ours, theirs, (75, 98))


def test_v2_checkpoint_needs_the_options_of_v2():
    with pytest.raises(RuntimeError, match=r'blocks\.0\.ffn\.layers\.0\.1\.weight'):
        loaded(authors_checkpoint(version=2))


def test_authors_checkpoint_gives_the_plain_output():
    convert = pytest.importorskip('mmdet.models.backbones.pvt').pvt_convert
    checkpoint = authors_checkpoint()
    theirs = plain()
    theirs.load_state_dict(convert(dict(checkpoint)))
    assert_same_outputs(loaded(checkpoint), theirs, (237, 301))
    assert_same_outputs(loaded({'model': checkpoint}), theirs, (64, 96))


def test_random_paths_change_the_output():
    """The comparison in the tests above detects the convolution path."""
    theirs = plain()
    ours = loaded(theirs.state_dict())
    with torch.no_grad():
        ours.stages[3].blocks[0].attn.mix.beta.fill_(0.1)
    with pytest.raises(AssertionError):
        assert_same_outputs(ours, theirs, (64, 96))


def test_beta_learns_after_a_warm_start():
    backbone = loaded(authors_checkpoint())
    sum(out.square().mean() for out in backbone(torch.randn(1, 3, 64, 64).double())).backward()
    for stage in backbone.stages:
        for block in stage.blocks:
            assert block.attn.mix.alpha.item() == 1
            assert block.attn.mix.beta.item() == 0
            assert block.attn.mix.beta.grad.abs().item() > 0


def test_without_warm_start_paths_keep_their_start():
    backbone = ACmixPVT(**NARROW, warm_start=False)
    missing, unexpected = backbone.load_state_dict(authors_checkpoint(), strict=False)
    assert not unexpected
    assert {name.split('.attn.')[1].split('.')[0] for name in missing} == {'mix', 'shift_conv'}
    assert backbone.stages[0].blocks[0].attn.mix.beta.item() == 0.5


def test_position_embeddings_are_interpolated():
    """Interpolating once when loading equals interpolating in every forward pass."""
    checkpoint = authors_checkpoint()
    size = (320, 256)
    x = torch.randn(1, 3, *size).double()
    with torch.no_grad():
        once = loaded(checkpoint, pretrain_img_size=size)(x)
        every_time = loaded(checkpoint)(x)
    for ours, expected in zip(once, every_time, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_position_map():
    tokens = torch.arange(13.0 * 2).view(1, 13, 2)[:, :9]
    assert position_map(tokens)[0, 1].tolist() == [[1, 3, 5], [7, 9, 11], [13, 15, 17]]
    with_class = torch.cat([torch.full((1, 1, 2), -1.0), tokens], 1)
    assert torch.equal(position_map(with_class), position_map(tokens))
    with pytest.raises(ValueError, match='12 tokens does not form a square map'):
        position_map(torch.zeros(1, 12, 2))


def test_position_of_other_channels_is_left_for_torch_to_refuse():
    position = torch.zeros(1, 8, 7, 7)
    assert resize_position(position, (1, 4, 9, 9)) is position


def test_own_checkpoint_is_ours():
    for options in ({}, V2):
        backbone = ACmixPVT(**NARROW | options)
        assert identify(backbone.state_dict())[1].name == 'ACmixPVT of acmix-mm'
