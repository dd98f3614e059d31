import pytest
import torch
from golden import Golden
from mmcv.cnn.bricks.transformer import PatchMerging

from acmix_mm.backbones import ACmixSwin
from acmix_mm.checkpoints import identify
from acmix_mm.checkpoints.swin import FAMILY, resize_bias_table, to_unfold_order


@pytest.fixture(scope='module')
def released() -> dict:
    return Golden.load('swin_tiny_like').state_dict


def test_released(released):
    family, fmt = identify(released)
    assert (family.name, fmt.name) == ('ACmixSwin', 'released Swin-ACmix classifier')
    buffers = {
        'layers.0.blocks.1.attn_mask': torch.zeros(64, 49, 49),
        'layers.0.blocks.0.attn.relative_position_index': torch.zeros(49, 49),
    }
    conversion = fmt.convert(released | buffers)
    network = ACmixSwin(embed_dims=24, depths=(2, 2, 2, 2), out_indices=(3,)).state_dict()
    assert {k: v.shape for k, v in conversion.state_dict.items()} == {
        k: v.shape for k, v in network.items()
    }
    assert set(conversion.dropped) == {'head.weight', 'head.bias', *buffers}
    assert conversion.unknown == []
    renamed = conversion.renamed
    assert renamed['norm.weight'] == 'norm3.weight'
    assert renamed['layers.2.blocks.1.mlp.fc2.bias'] == 'stages.2.blocks.1.ffn.layers.1.bias'
    assert renamed['layers.0.blocks.1.attn.rate2'] == 'stages.0.blocks.1.attn.mix.beta'


def test_the_final_norm_is_that_of_the_last_stage(released):
    three = {k: v for k, v in released.items() if not k.startswith('layers.3.')}
    assert 'norm2.weight' in FAMILY.identify(three).convert(three).state_dict


def test_plain_forms_are_told_apart(released):
    acmix = ('.fc.', '.dep_conv.', '.rate')
    plain = {k: v for k, v in released.items() if not any(f'attn{part}' in k for part in acmix)}
    assert FAMILY.identify(plain).name == 'plain Swin (Microsoft)'
    mm = pytest.importorskip('mmdet.models').SwinTransformer(embed_dims=12).state_dict()
    fmt = FAMILY.identify(mm)
    assert fmt.name == 'plain Swin (mmdet, mmseg, mmpretrain)'
    conversion = fmt.convert(mm)
    assert conversion.unknown == []
    assert all(name.endswith('relative_position_index') for name in conversion.dropped)
    ours = set(ACmixSwin(embed_dims=12, acmix_cfg=dict(path_weights=(1, 0))).state_dict())
    assert set(conversion.state_dict) == ours


def test_merging_in_unfold_order_equals_concatenation():
    torch.manual_seed(0)
    norm, reduction = torch.nn.LayerNorm(20), torch.nn.Linear(20, 7, bias=False)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, 8, 5)
    # The order of Microsoft's code.
    patches = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    expected = reduction(norm(torch.cat(patches, -1)))

    merging = PatchMerging(5, 7)
    merging.norm.weight.data = to_unfold_order(norm.weight.data)
    merging.norm.bias.data = to_unfold_order(norm.bias.data)
    merging.reduction.weight.data = to_unfold_order(reduction.weight.data)
    merged, size = merging(x.flatten(1, 2), (6, 8))
    assert size == (3, 4)
    torch.testing.assert_close(merged.unflatten(1, size), expected)


def test_resize_bias_table():
    torch.manual_seed(0)
    table = torch.randn(13**2, 3, dtype=torch.float16)
    same = resize_bias_table(table, torch.Size([13**2, 3]))
    torch.testing.assert_close(same, table)
    larger = resize_bias_table(table, torch.Size([23**2, 3]))
    assert (larger.shape, larger.dtype) == ((23**2, 3), torch.float16)
    # The offset of a pixel to itself is in the middle and stays there.
    torch.testing.assert_close(larger[23**2 // 2], table[13**2 // 2])
    assert resize_bias_table(table, torch.Size([23**2, 6])) is table, 'other heads do not fit'
