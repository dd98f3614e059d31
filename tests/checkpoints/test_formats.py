import pytest
import torch

from acmix_mm.checkpoints import FAMILIES, Family, Format, Rule, identify, rename
from acmix_mm.checkpoints.formats import rules_of_layer


def numbered(*names: str) -> dict:
    return {name: torch.full((1, 2), float(i)) for i, name in enumerate(names)}


def test_first_rule_wins_and_nothing_is_lost():
    state_dict = numbered('a.x', 'a.y', 'head.w', 'other')
    rules = [
        Rule(r'a\.x', 'first'),
        Rule(r'a\.(.*)', r'a.deep.\1', lambda t: t + 10),
        Rule('head.*', None, reason='head'),
    ]
    conversion = rename(state_dict, rules)
    assert conversion.renamed == {'a.x': 'first', 'a.y': 'a.deep.y'}
    assert conversion.dropped == {'head.w': 'head'}
    assert conversion.unknown == ['other']
    assert list(conversion.state_dict) == ['first', 'a.deep.y']
    assert (conversion.state_dict['a.deep.y'] == 11).all()
    assert list(state_dict) == ['a.x', 'a.y', 'head.w', 'other'], 'the input stays'


def test_patterns_match_whole_names():
    conversion = rename(numbered('xa', 'ab'), [Rule('a', 'b')])
    assert conversion.unknown == ['xa', 'ab']


def test_pieces_are_put_together_in_the_order_of_the_rules():
    rules = [Rule('q', 'qkv'), Rule('k', 'qkv'), Rule('v', 'qkv')]
    for names in ['qkv', 'vkq', 'kvq']:
        state_dict = {name: torch.tensor([ord(name)]) for name in names}
        qkv = rename(state_dict, rules).state_dict['qkv']
        assert bytes(qkv.tolist()) == b'qkv'


def test_rules_of_layer():
    rules = rules_of_layer(r'l(\d)\.', r'stage\1.', {'a.b': ('c', None)})
    conversion = rename(numbered('l2.a.b', 'l2.aXb'), rules)
    assert conversion.renamed == {'l2.a.b': 'stage2.c'}
    assert conversion.unknown == ['l2.aXb'], 'a dot is a dot'


def test_formats_are_tried_in_order_after_ours():
    wide, narrow = Format('wide', '.*', ()), Format('narrow', 'x', [Rule('x', 'y')])
    assert Family('F', 'ours', (wide, narrow)).identify(numbered('x')) is wide
    family = Family('F', 'ours', (narrow, wide))
    assert family.identify(numbered('z', 'x')) is narrow
    assert family.identify(numbered('x', 'ours')) == family.ours
    assert Family('F', 'ours', (narrow,)).identify(numbered('z')) is None


def test_ours_is_kept_as_it_is():
    state_dict = numbered('ours', 'whatever.else')
    conversion = Family('F', 'ours', ()).ours.convert(state_dict)
    assert conversion.state_dict == state_dict
    assert not conversion.unknown


def test_rules_may_depend_on_the_state_dict():
    fmt = Format('f', 'x', lambda state_dict: [Rule('x', f'x{len(state_dict)}')])
    assert fmt.convert(numbered('x', 'y')).renamed == {'x': 'x2'}


@pytest.mark.parametrize('name', FAMILIES)
def test_each_backbone_knows_its_own_checkpoints(name):
    """Each backbone's state dict is recognised by its own family and by no other."""
    from acmix_mm.registry import MODELS

    args = dict(depth=26) if name in ('ACmixResNet', 'ACmixSAN') else {}
    if name == 'ACmixSAN':
        args = dict(depth=10)
    with torch.device('meta'):
        state_dict = MODELS.build(dict(type=name, **args)).state_dict()
    family, fmt = identify(state_dict)
    assert family.name == name
    assert fmt == family.ours
    others = [other for other in FAMILIES.values() if other.name != name]
    assert [other.identify(state_dict) for other in others] == [None] * len(others)


def test_unknown_networks_are_not_identified():
    assert identify(numbered('transformer.h.0.attn.weight')) is None


SHAPES = [(), (0,), (1,), (7,), (1, 7), (3, 0), (1, 7, 4), (5, 4, 3, 2), (1, 2, 3, 4, 5)]
NAMES = {
    'released ResNet-ACmix classifier': [
        'layer1.0.conv2.dep_conv.weight', 'layer1.0.conv2.fc.weight', 'layer1.0.conv2.rate1',
        'layer1.0.conv2.conv1.weight', 'layer1.0.conv2.conv2.weight',
    ],
    'released Swin-ACmix classifier': [
        'layers.0.blocks.0.attn.dep_conv.weight', 'layers.0.downsample.reduction.weight',
        'layers.0.blocks.0.attn.rate1', 'layers.0.blocks.0.attn.fc.bias',
    ],
    'plain PVT (authors)': [
        'patch_embed1.proj.weight', 'pos_embed1', 'block1.0.attn.q.weight',
        'block1.0.attn.kv.weight',
    ],
    'plain PVT (mmdet)': [
        'layers.0.0.projection.weight', 'layers.0.1.0.pos_embed', 'layers.0.1.1.norm1.weight',
        'layers.0.1.1.ffn.layers.0.weight',
    ],
    'plain SAN, patch-wise': [
        'layer0.0.sam.conv_w.0.weight', 'layer0.0.sam.conv1.weight', 'layer0.0.sam.conv2.weight',
    ],
}  # fmt: skip


@pytest.mark.parametrize('shapes', [SHAPES, SHAPES[::-1], SHAPES[3:] + SHAPES[:3]], ids='012')
@pytest.mark.parametrize('fmt', NAMES)
def test_planted_shapes_are_named(fmt, shapes):
    messages = []
    for shape in shapes:
        for other in shapes:
            state_dict = {
                name: torch.ones(shape if i % 2 else other) for i, name in enumerate(NAMES[fmt])
            }
            _, found = identify(state_dict)
            assert found.name == fmt
            try:
                found.convert(state_dict)
            except ValueError as error:
                messages.append(str(error))
    assert messages
    assert all(' does not fit the format: ' in message for message in messages)
    assert not any('\n' in message for message in messages)


def test_planted_position_of_7_tokens():
    state_dict = {'patch_embed1.proj.weight': torch.ones(1), 'pos_embed1': torch.ones(1, 7, 4)}
    _, fmt = identify(state_dict)
    with pytest.raises(ValueError, match=r'pos_embed1, of shape \(1, 7, 4\), does not'):
        fmt.convert(state_dict)


@pytest.mark.parametrize('shape', SHAPES)
def test_planted_shapes_are_not_interpolated(shape):
    tensor = torch.ones(shape)
    for family in FAMILIES.values():
        for name, resize in family.resize.items():
            expected = torch.Size((169, 4) if 'bias' in name else (1, 9, 7, 7))
            assert resize(tensor, expected) is tensor
