import copy
import pickle
import re

import pytest
import torch
from golden import Golden
from mmengine.model import BaseModule
from mmengine.runner.checkpoint import load_state_dict as load_state_dict_of_mmengine
from torch import nn

from acmix_mm.backbones import ACmixPVT, ACmixResNet, ACmixSAN, ACmixSwin, loading
from acmix_mm.backbones.loading import register_checkpoint_conversion
from acmix_mm.layers import PathMix, ShiftConv

SIZES = dict(embed_dims=24, depths=(2, 2, 2, 2))


@pytest.fixture
def messages(monkeypatch) -> list[str]:
    """What loading logs."""
    logged = []
    monkeypatch.setattr(loading, 'print_log', lambda message, **_: logged.append(message))
    return logged


@pytest.fixture(scope='module')
def released() -> dict:
    return Golden.load('swin_tiny_like').state_dict


@pytest.fixture(scope='module')
def plain(released) -> dict:
    """Microsoft's Swin with the weights of the released Swin-ACmix."""
    acmix = re.compile(r'.*\.attn\.(fc|dep_conv|rate\d)\b.*')
    return {k: v for k, v in released.items() if not acmix.fullmatch(k)}


def swin(**kwargs) -> ACmixSwin:
    torch.manual_seed(0)
    return ACmixSwin(**(SIZES | kwargs))


def same(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


def detector(backbone: nn.Module) -> nn.Module:
    model = BaseModule()
    model.backbone, model.neck = backbone, nn.Linear(2, 2)
    return model


@pytest.mark.parametrize(
    'wrap',
    [
        lambda s: s,
        lambda s: {'model': s, 'epoch': 300, 'optimizer': {'state': {}}},
        lambda s: {'state_dict': s, 'meta': {}},
        lambda s: {'model': {f'module.{k}': v for k, v in s.items()}},
        lambda s: {f'backbone.{k}': v for k, v in s.items()} | {'neck.w': s['norm.bias']},
    ],
    ids=['bare', 'model', 'state_dict', 'module.', 'backbone.'],
)
@pytest.mark.parametrize('strict', [True, False])
def test_every_wrapping_loads(released, messages, tmp_path, wrap, strict):
    expected = swin(out_indices=(3,))
    expected.load_state_dict(released)
    assert not same(expected, swin(out_indices=(3,)))
    if strict:
        backbone = swin(out_indices=(3,))
        backbone.load_state_dict(wrap(released))
    else:
        torch.save(wrap(released), tmp_path / 'file.pth')
        init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'file.pth'))
        backbone = swin(out_indices=(3,), init_cfg=init_cfg)
        backbone.init_weights()
    assert same(backbone, expected)
    assert len(messages) == 2


def test_a_part_of_a_file_loads_by_prefix(released, tmp_path):
    torch.save({f'backbone.{k}': v for k, v in released.items()}, tmp_path / 'file.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'file.pth'), prefix='backbone.')
    backbone, expected = swin(out_indices=(3,), init_cfg=init_cfg), swin(out_indices=(3,))
    backbone.init_weights()
    expected.load_state_dict(released)
    assert same(backbone, expected)


def test_loads_within_a_detector(released):
    detector = BaseModule()
    detector.backbone, detector.neck = swin(out_indices=(3,)), nn.Linear(2, 2)
    expected = copy.deepcopy(detector)
    expected.backbone.load_state_dict(released)
    theirs = {f'backbone.{k}': v for k, v in released.items()}
    theirs |= {f'neck.{k}': v for k, v in expected.neck.state_dict().items()}
    detector.load_state_dict(theirs)
    assert same(detector, expected)


FOREIGN = {
    'plain ResNet': (['conv1.weight', 'layer1.0.conv2.weight'], 'its format is plain ResNet'),
    'unknown': (['blocks.0.weight', 'head.bias'], 'its format is unknown'),
    'unknown, with a name of ours': (
        ['stages.0.blocks.0.norm1.weight', 'cls_token'],
        'its format is unknown',
    ),
    # It shares names of blocks with ACmixPVT, such as stages.0.blocks.0.norm1.weight.
    'other family': (
        ['stages.0.blocks.0.norm1.weight', 'stages.0.blocks.0.attn.w_msa.qkv.weight'],
        'its format is plain Swin',
    ),
    'pair-wise SAN': (
        ['layer0.0.sam.conv_w.0.weight', 'layer0.0.sam.conv_p.weight'],
        'this is a checkpoint of a pair-wise SAN',
    ),
}


@pytest.mark.parametrize(('names', 'says'), FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize('load', [nn.Module.load_state_dict, load_state_dict_of_mmengine])
def test_the_other_parts_of_a_detector_with_another_backbone_load(names, says, load, messages):
    family = ACmixSAN if 'pair-wise' in says else ACmixPVT
    sizes = dict(depth=10) if family is ACmixSAN else dict(embed_dims=8, num_layers=(1, 1, 1, 1))
    model = detector(family(**sizes))
    started = copy.deepcopy(model.backbone)
    entries = {f'backbone.{name}': torch.ones(1) for name in names}
    entries |= {'neck.weight': torch.full((2, 2), 3.0), 'neck.bias': torch.ones(2)}
    incompatible = load(model, entries, strict=False)
    assert same(model.backbone, started)
    assert (model.neck.weight == 3).all()
    (message,) = messages
    assert says in message
    assert message.endswith(f'. {family.__name__} keeps the weights that it has.')
    if incompatible is not None:  # mmengine logs it
        assert incompatible.unexpected_keys == []
        missing = {name.removeprefix('backbone.') for name in incompatible.missing_keys}
        assert missing == {n for n in started.state_dict() if 'num_batches_tracked' not in n}
        with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "backbone\.'):
            load(model, entries)


def test_a_detector_whose_checkpoint_has_no_backbone():
    detector = BaseModule()
    detector.backbone, detector.neck = swin(), nn.Linear(2, 2)
    missing = detector.load_state_dict(nn.Sequential(detector.neck).state_dict(), strict=False)
    assert len(missing.missing_keys) == len(detector.state_dict())


def test_report_of_a_released_classifier(released, messages):
    incompatible = swin().load_state_dict(released, strict=False)
    (message,) = messages
    assert message.splitlines() == [
        'ACmixSwin: loaded 159 of 165 entries from a checkpoint of released Swin-ACmix classifier',
        '  dropped, classifier head: 2 (head.bias, head.weight)',
        '  not in the checkpoint, left unchanged: 6 '
        '(norm0.weight, norm0.bias, norm1.weight, norm1.bias, norm2.weight, norm2.bias)',
    ]
    assert len(incompatible.missing_keys) == 6
    assert not incompatible.unexpected_keys


def test_warm_start_fills_in_what_a_plain_network_lacks(plain, messages):
    backbone = swin(out_indices=(3,))
    started = copy.deepcopy(backbone.state_dict())
    backbone.load_state_dict(plain)
    (message,) = messages
    assert 'loaded 119 of 159 entries from a checkpoint of plain Swin (Microsoft)' in message
    assert (
        'set to alpha = 1, beta = 0, so that they compute what the plain ones did: 8 (' in message
    )
    assert 'left unchanged' not in message
    for name, tensor in backbone.state_dict().items():
        if name.endswith('mix.alpha'):
            assert tensor == 1
        elif name.endswith('mix.beta'):
            assert tensor == 0
        elif '.shift_conv.' in name:
            assert torch.equal(tensor, started[name])


def test_warm_start_can_be_declined(plain, messages):
    incompatible = swin(out_indices=(3,), warm_start=False).load_state_dict(plain, strict=False)
    kinds = {name.split('attn.')[1] for name in incompatible.missing_keys}
    paths = {'shift_conv.fc_weight', 'shift_conv.fc_bias', 'shift_conv.kernel'}
    assert kinds == {'mix.alpha', 'mix.beta'} | paths
    assert 'left unchanged: 40 (stages.*.blocks.*.attn.mix.alpha, ' in messages[0]


BACKBONES = {
    'ResNet': (ACmixResNet, dict(depth=26, base_channels=8)),
    'SAN': (ACmixSAN, dict(depth=10, base_channels=32)),
    'PVT': (ACmixPVT, dict(embed_dims=8, num_layers=(1, 1, 1, 1))),
    'Swin': (ACmixSwin, SIZES),
}


@pytest.mark.parametrize(
    ('name', 'weights'),
    [
        *((name, 'learned') for name in BACKBONES),
        # A plain ResNet has no attention that ACmix layers could start from.
        *((name, (1, 0)) for name in ('SAN', 'PVT', 'Swin')),
    ],
)
def test_assign_to_a_backbone_on_the_meta_device(name, weights, messages):
    """It gets the dtype of the checkpoint, also in the paths that a plain network lacks."""
    family, sizes = BACKBONES[name]
    source = family(**sizes, acmix_cfg=dict(path_weights=weights)).double().eval()
    with torch.device('meta'):
        target = family(**sizes).eval()
    target.load_state_dict(source.state_dict(), assign=True)
    assert len(messages) == (weights == (1, 0))
    assert {parameter.dtype for parameter in target.parameters()} == {torch.float64}
    assert {tensor.device.type for tensor in target.buffers()} <= {'cpu'}
    x = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    for ours, theirs in zip(target(x), source(x), strict=True):
        torch.testing.assert_close(ours, theirs)
    convs = [module for module in target.modules() if isinstance(module, ShiftConv)]
    assert convs
    for conv in convs:
        assert torch.equal(conv.kernel[0].flatten(1), torch.eye(9, dtype=torch.float64))
        bound = conv.fc_weight.shape[-1] ** -0.5
        assert bound / 2 < conv.fc_weight.abs().max() < bound


def test_assign_keeps_the_start_of_a_backbone_that_has_one(plain):
    backbone = swin(out_indices=(3,))
    started = copy.deepcopy(backbone.stages[0].blocks[0].attn.shift_conv)
    backbone.load_state_dict({name: tensor.half() for name, tensor in plain.items()}, assign=True)
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float16}
    assert same(backbone.stages[0].blocks[0].attn.shift_conv, started.half())


@pytest.mark.parametrize('weights', ['complementary', (1, 0), (1, 1)])
def test_warm_start_with_other_path_weights(plain, messages, weights):
    backbone = swin(out_indices=(3,), acmix_cfg=dict(path_weights=weights))
    mixes = [m for m in backbone.modules() if isinstance(m, PathMix)]
    incompatible = backbone.load_state_dict(plain, strict=False)
    if weights == 'complementary':
        assert all(mix.alpha == 1 for mix in mixes)
    elif weights == (1, 0):  # nothing is lacking
        assert '159' not in messages[0]
    else:  # fixed weights are not changed, so the convolution path is reported
        assert 'left unchanged: 24' in messages[0]
    assert len(incompatible.missing_keys) == (24 if weights == (1, 1) else 0)


def test_attention_alone_is_a_warm_start_and_convolution_alone_is_not(messages):
    for weights, starts in [((1, 0), True), ((0, 1), False)]:
        source, target = swin(acmix_cfg=dict(path_weights=weights)), swin()
        incompatible = target.load_state_dict(source.state_dict(), strict=False)
        beta = target.stages[0].blocks[0].attn.mix.beta
        assert beta == (0 if starts else 0.5)
        assert bool(incompatible.missing_keys) == (not starts)
        assert len(messages) == 1


def test_ours_passes_untouched_and_without_a_word(messages):
    source, target = swin(), swin()
    nn.init.normal_(source.stages[0].blocks[0].attn.mix.beta)
    state_dict = source.state_dict()
    target.load_state_dict(state_dict)
    assert same(target, source)
    assert state_dict.keys() == source.state_dict().keys()
    assert messages == []


def test_a_part_of_ours_is_reported_by_torch():
    with pytest.raises(RuntimeError, match=r'Missing key.*stages.0.blocks.0.attn.qkv.weight'):
        swin().load_state_dict(swin().norm0.state_dict(prefix='norm0.'))


def test_unknown_entries_reach_strict_loading(released, messages):
    extra = released | {'layers.0.blocks.0.attn.temperature': torch.ones(1)}
    with pytest.raises(RuntimeError, match=r'Unexpected key.*blocks.0.attn.temperature'):
        swin(out_indices=(3,)).load_state_dict(extra)
    assert 'but not in the model: 1 (layers.0.blocks.0.attn.temperature)' in messages[0]


def test_other_windows_interpolate_the_bias_tables(released, messages):
    backbone = swin(out_indices=(3,), window_size=5)
    backbone.load_state_dict(released)
    assert 'interpolated: 8 (stages.*.blocks.*.attn.relative_position_bias_table' in messages[0]
    theirs = released['layers.1.blocks.0.attn.relative_position_bias_table']
    grid = theirs.T.reshape(1, 6, 13, 13)
    expected = nn.functional.interpolate(grid, (9, 9), mode='bicubic').reshape(6, 81).T
    table = backbone.stages[1].blocks[0].attn.relative_position_bias_table
    torch.testing.assert_close(table.detach(), expected)


def test_our_own_bias_tables_are_interpolated_too(messages):
    source, target = swin(), swin(window_size=4)
    target.load_state_dict(source.state_dict())
    assert 'interpolated: 8' in messages[0]
    assert 'from a checkpoint of ACmixSwin of acmix-mm' in messages[0]


def test_other_widths_are_refused_and_reported(released, messages):
    with pytest.raises(RuntimeError, match=r'size mismatch for patch_embed.projection.weight'):
        swin(embed_dims=12, out_indices=(3,)).load_state_dict(released, strict=False)
    assert re.search(r'of another shape, not loaded: \d+ \(', messages[0])


@pytest.mark.parametrize(
    ('names', 'says'),
    [
        (['transformer.wte'], r"its format is unknown \(1 entries, such as 'transformer.wte'\)"),
        (['layer1.0.conv2.weight'], 'its format is plain ResNet'),
    ],
)
def test_other_networks_are_refused(names, says):
    state_dict = {name: torch.ones(1) for name in names}
    with pytest.raises(ValueError, match=rf'^ACmixSwin cannot load .*{says}.*Known: ACmixSwin of'):
        swin().load_state_dict(state_dict, strict=False)


def test_copies_load_as_well(released):
    backbone = swin(out_indices=(3,))
    copies = [copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))]
    backbone.load_state_dict(released)
    for other in copies:
        assert not same(other, backbone)
        other.load_state_dict(released)
        assert same(other, backbone)


def test_unknown_family():
    with pytest.raises(KeyError, match=r"no family of checkpoints 'Swin', choose one of \['ACmix"):
        register_checkpoint_conversion(nn.Identity(), 'Swin')
