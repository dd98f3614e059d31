from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from golden import Golden, relative_error
from mmcv.cnn.bricks import ContextBlock
from mmcv.ops import ModulatedDeformConv2dPack
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from torch import nn
from upstream import mmpretrain

from acmix_mm.backbones import ACmixResNet
from acmix_mm.layers import ACmix
from acmix_mm.ops import use_backend
from acmix_mm.registry import MODELS

DCN = dict(type='DCNv2', deform_groups=1, fallback_on_stride=False)
CONTEXT = dict(cfg=dict(type='ContextBlock', ratio=1 / 4))
PLUGINS = [
    dict(CONTEXT, stages=(False, True, True, True), position='after_conv2'),
    dict(
        cfg=dict(type='ContextBlock', ratio=1 / 8, postfix='_first'),
        stages=(False, True, True, True),
        position='after_conv1',
    ),
    dict(cfg=dict(type='ContextBlock', ratio=1 / 16, postfix='_last'), position='after_conv3'),
]
A_LIST = r'plugins must be a list of dict\(cfg=dict\(type=...\), position=...\), '


def randomized(**kwargs) -> ACmixResNet:
    """A narrow backbone with mixing weights, shifts and norms away from their start."""
    torch.manual_seed(0)
    kwargs = dict(depth=26, base_channels=8, norm_eval=False, zero_init_residual=False) | kwargs
    backbone = ACmixResNet(**kwargs)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if name.endswith(('alpha', 'beta', 'kernel', 'bias')):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone


class _ReleasedSize(ACmixResNet):
    blocks_of_depth = {26: (1, 1, 1, 1)}


@pytest.mark.parametrize('backend', ['dense', None])
def test_equals_released_resnet(backend):
    golden = Golden.load('resnet_1111')
    backbone = _ReleasedSize(26).double().eval()
    incompatible = backbone.load_state_dict(golden.state_dict, strict=False)
    assert not incompatible.missing_keys
    with use_backend(backend, 'shift_conv') if backend else nullcontext():
        outs = backbone(golden.input)
    for i, out in enumerate(outs, 1):
        sample = out.flatten()[:: max(1, out.numel() // 4000)]
        assert relative_error(sample, golden.arrays[f'stage{i}']) <= 1e-6


@pytest.mark.parametrize(
    ('depth', 'num_conv_pairs', 'millions'),
    # Released code, and the published counts, both with the 1000-class head.
    [
        *[(26, 1, 10.488), (38, 1, 14.411), (50, 1, 18.334)],
        *[(26, 2, 10.64), (38, 2, 14.64), (50, 2, 18.64)],
    ],
)
def test_parameter_counts(depth, num_conv_pairs, millions):
    backbone = ACmixResNet(depth, acmix_cfg=dict(num_conv_pairs=num_conv_pairs))
    head = nn.Linear(2048, 1000)
    count = sum(p.numel() for module in (backbone, head) for p in module.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=5e-3 if num_conv_pairs == 2 else 5e-4)


@pytest.mark.parametrize('size', [(64, 64), (237, 301), (33, 47)])
def test_every_parameter_gets_a_gradient(size):
    backbone = randomized()
    outs = backbone(torch.randn(2, 3, *size))
    shapes = [tuple(out.shape) for out in outs]
    assert shapes == [(2, 32 * 2**i, *(-(-side // (4 * 2**i)) for side in size)) for i in range(4)]
    sum(out.square().mean() for out in outs).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name


def test_checkpointing_changes_nothing():
    x = torch.randn(2, 3, 48, 64)
    results = []
    for with_cp, inside in ((False, False), (True, False), (False, True), (True, True)):
        backbone = randomized(with_cp=with_cp, acmix_cfg=dict(with_cp=inside))
        outs = backbone(x)
        sum(out.square().mean() for out in outs).backward()
        gradients = [p.grad for p in backbone.parameters()]
        statistics = [b for b in backbone.buffers() if b.is_floating_point()]
        results.append([*outs, *gradients, *statistics])
    for plain, *checkpointed in zip(*results, strict=True):
        for tensor in checkpointed:
            torch.testing.assert_close(tensor, plain)


@pytest.mark.parametrize('deep_stem', [False, True])
def test_frozen_stages_keep_weights_and_stay_in_eval_mode(deep_stem):
    backbone = randomized(frozen_stages=1, deep_stem=deep_stem)
    backbone.train()
    sum(out.square().mean() for out in backbone(torch.randn(2, 3, 32, 32))).backward()
    stem = ('stem.',) if deep_stem else ('conv1.', 'bn1.')
    for name, parameter in backbone.named_parameters():
        frozen = name.startswith((*stem, 'layer1.'))
        assert (parameter.grad is None) == frozen, name
    assert not any(m.training for m in backbone.layer1.modules())
    assert backbone.layer2.training


def test_norm_eval_keeps_running_statistics():
    for norm_eval in (True, False):
        backbone = randomized(norm_eval=norm_eval).train()
        before = backbone.bn1.running_mean.clone()
        backbone(torch.randn(2, 3, 32, 32) + 1)
        assert torch.equal(backbone.bn1.running_mean, before) == norm_eval


def test_stage_with_acmix():
    backbone = randomized(stage_with_acmix=(False, False, True, True))
    kinds = [{type(block.conv2) for block in getattr(backbone, f'layer{i}')} for i in range(1, 5)]
    assert kinds == [{nn.Conv2d}, {nn.Conv2d}, {ACmix}, {ACmix}]


def test_acmix_cfg_reaches_every_layer():
    backbone = randomized(acmix_cfg=dict(kernel_att=5, num_heads=2, path_weights=(1, 0)))
    layers = [m for m in backbone.modules() if isinstance(m, ACmix)]
    assert len(layers) == 8
    assert {(m.kernel_att, m.num_heads, m.mix.weights) for m in layers} == {(5, 2, (1, 0))}


def test_dilated_stages_keep_resolution():
    """mmseg's output stride 8."""
    geometry = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True)
    backbone = randomized(**geometry)
    sizes = [out.shape[-2:] for out in backbone(torch.randn(1, 3, 64, 72))]
    assert sizes == [(16, 18), (8, 9), (8, 9), (8, 9)]
    assert [block.conv2.dilation[0] for block in backbone.layer4] == [2]
    assert [block.conv2.dilation[0] for block in backbone.layer3] == [1, 2, 2, 2]


@pytest.mark.parametrize('style', ['pytorch', 'caffe'])
def test_style_moves_the_stride(style):
    block = randomized(style=style).layer2[0]
    strides = (block.conv1.stride[0], block.conv2.stride[0])
    assert strides == ((1, 2) if style == 'pytorch' else (2, 1))


def test_variants_have_mmdet_names():
    """Checkpoints of mmdet's ResNet-C and -D fit outside the 3x3 convolutions."""
    resnet = pytest.importorskip('mmdet.models').ResNet
    for deep_stem, avg_down in [(False, False), (True, False), (True, True)]:
        options = dict(base_channels=8, deep_stem=deep_stem, avg_down=avg_down)
        theirs = set(resnet(50, **options).state_dict())
        ours = set(ACmixResNet(50, **options).state_dict())
        blocks = [f'layer{i + 1}.{j}' for i, n in enumerate((3, 4, 6, 3)) for j in range(n)]
        assert theirs - ours == {f'{block}.conv2.weight' for block in blocks}
        assert all('.conv2.' in name for name in ours - theirs)


def test_shifts_survive_the_default_initialiser():
    backbone = MODELS.build(dict(type='ACmixResNet', depth=26, base_channels=8))
    backbone.init_weights()
    layer = backbone.layer3[0].conv2
    assert torch.equal(layer.shift_conv.kernel[0], torch.eye(9).view(9, 3, 3))
    assert layer.mix.alpha.item() == layer.mix.beta.item() == 0.5
    assert (backbone.layer3[0].norm3.weight == 0).all(), 'zero_init_residual'
    assert backbone.conv1.weight.std().item() == pytest.approx((2 / (8 * 49)) ** 0.5, rel=0.1)


def test_drop_path_rates_grow_over_the_blocks():
    backbone = randomized(drop_path_rate=0.7)
    rates = [
        getattr(block.drop_path, 'drop_prob', 0.0)
        for i in range(1, 5)
        for block in getattr(backbone, f'layer{i}')
    ]
    assert rates == pytest.approx([0.1 * i for i in range(8)], abs=1e-6)


def test_other_norms():
    backbone = ACmixResNet(26, base_channels=16, norm_cfg=dict(type='GN', num_groups=4))
    assert isinstance(backbone.layer1[0].norm2, nn.GroupNorm)
    assert backbone(torch.randn(1, 3, 32, 32))[0].shape == (1, 64, 8, 8)


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (dict(depth=20), r'depth must be in \[18, 26, 34, 38, 50, 101, 152\], got 20'),
        (dict(num_stages=0), 'num_stages must be 1 to 4, got 0'),
        (dict(num_stages=5), 'num_stages must be 1 to 4, got 5'),
        (dict(num_stages=3), r'strides must have 3 values, .* got \(1, 2, 2, 2\)'),
        (dict(out_indices=(0, 4)), r'out_indices must be stages from 0 to 3, got \(0, 4\)'),
        (dict(out_indices=(-1,)), r'out_indices must be stages from 0 to 3, got \(-1,\)'),
        (dict(style='torch'), "style must be .* got 'torch'"),
        (dict(frozen_stages=5), 'frozen_stages must be .* got 5'),
        (dict(strides=(1, 2)), r'strides must have 4 values, one for each stage, got \(1, 2\)'),
        (dict(stage_with_acmix=(True,)), 'stage_with_acmix must have 4 values'),
        (dict(pretrained='a.pth', init_cfg=dict(type='Normal')), "pretrained='a.pth' and init_cfg"),
        (dict(base_channels=6), 'multiple of num_heads=4, got 6'),
        (dict(multi_grid=(1, 2, 4)), r'multi_grid must have 1 values, .* got \(1, 2, 4\)'),
        (dict(dcn=dict(type='DCNv2'), stage_with_dcn=(True,)), 'stage_with_dcn must have 4 values'),
        (
            dict(dcn=dict(type='DCNv2'), stage_with_dcn=(True,) * 4, conv_cfg=dict(type='Conv2d')),
            'conv_cfg must be None in a network with dcn',
        ),
        (dict(depth=18, plugins=[dict(cfg={}, position='')]), 'need bottlenecks, .* depth=18'),
        (dict(depth=18, expansion=2), 'expansion must be 1 with .* depth=18, got 2'),
        (dict(plugins=[dict(cfg={}, position='after_conv4')]), "position .* got 'after_conv4'"),
        (
            dict(plugins=[dict(cfg={}, position='after_conv1', stages=(True,))]),
            'stages of a plugin must have 4 values',
        ),
        (dict(plugins=[dict(CONTEXT, position='after_conv1')] * 2), "the name 'context_block'"),
        (dict(plugins=dict(CONTEXT, position='after_conv1')), A_LIST + "got {'cfg'"),
        (dict(plugins=[CONTEXT]), A_LIST + r"got \[{'cfg'"),
        (dict(plugins=[dict(position='after_conv1')]), A_LIST + r"got \[{'position'"),
        (dict(plugins=[dict(cfg='ContextBlock', position='after_conv1')]), A_LIST),
        (dict(plugins='after_conv1'), A_LIST),
        (dict(plugins=1), A_LIST),
        (
            dict(plugins=[dict(CONTEXT, position='after_conv1', stages=True)]),
            'stages of a plugin must have 4 values',
        ),
    ],
)
def test_refuses(change, says):
    with pytest.raises(ValueError, match=says):
        ACmixResNet(**(dict(depth=26, base_channels=8) | change))


def randomize(network: nn.Module) -> None:
    """Draw every weight and statistic anew, so that none hides an error."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith('running_var'):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.normal_(std=(2 / max(tensor[0].numel(), 8)) ** 0.5)


@pytest.mark.parametrize(
    'options',
    [
        dict(depth=18),
        dict(depth=34, deep_stem=True, avg_down=True, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
        dict(style='caffe', stem_channels=16),
        dict(deep_stem=True, avg_down=True, out_indices=(1, 3)),
        dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,)),
        dict(num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,)),
        dict(norm_cfg=dict(type='GN', num_groups=4)),
        dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True),
        dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), multi_grid=(1, 2, 4)),
        dict(dcn=DCN, stage_with_dcn=(False, True, False, True)),
        dict(dcn=DCN, style='caffe', stage_with_dcn=(False, True, True, True)),
        dict(plugins=PLUGINS),
    ],
    ids=str,
)
def test_without_acmix_layers_it_is_the_network_of_upstream(options):
    """The same names and outputs, whatever the arguments are."""
    options = dict(depth=50, base_channels=8, stem_channels=8, in_channels=2) | options
    # mmseg lets a second plugin read what the first one read.
    library = 'mmdet' if 'plugins' in options else 'mmseg'
    theirs = pytest.importorskip(f'{library}.models').ResNet(**deepcopy(options))
    theirs.eval()
    randomize(theirs)
    ours = ACmixResNet(**options, stage_with_acmix=(False,) * options.get('num_stages', 4)).eval()
    ours.load_state_dict(theirs.state_dict())
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(2, 2, 48, 33)
    for out, expected in zip(ours(x), theirs(x), strict=True):
        assert expected.std() > 0
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(('depth', 'layers'), [(18, 16), (34, 32), (101, 33), (152, 50)])
def test_every_3x3_convolution_of_the_blocks_becomes_acmix(depth, layers):
    with torch.device('meta'):
        backbone = ACmixResNet(depth)
        outs = backbone(torch.empty(1, 3, 64, 64))
    assert sum(isinstance(m, ACmix) for m in backbone.modules()) == layers
    convolutions = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    sides = [m.kernel_size[0] for m in convolutions if m.groups == 1]
    assert sorted(sides)[-2:] == [1, 7]
    widths = (64, 128, 256, 512) if depth < 50 else (256, 512, 1024, 2048)
    assert [tuple(out.shape) for out in outs] == [
        (1, width, 16 // 2**i, 16 // 2**i) for i, width in enumerate(widths)
    ]
    assert backbone.feat_dim == widths[-1]


def test_wide_network_is_that_of_mmpretrain():
    """Twice the channels within the blocks, the same outside."""
    narrow = dict(depth=50, stem_channels=8, base_channels=16, expansion=2, out_indices=(0, 3))
    theirs = mmpretrain('models.backbones').ResNet(**narrow)
    theirs.eval()
    randomize(theirs)
    ours = ACmixResNet(**narrow, stage_with_acmix=(False,) * 4).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 32, 40)
    for out, expected in zip(ours(x), theirs(x), strict=True):
        torch.testing.assert_close(out, expected)
    assert ours.feat_dim == theirs.feat_dim == 256


def test_basic_blocks_train():
    backbone = randomized(depth=18, with_cp=True, drop_path_rate=0.1)
    sum(out.square().mean() for out in backbone(torch.randn(2, 3, 32, 32))).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    first, second = backbone.layer2[0].conv1, backbone.layer2[0].conv2
    assert (first.stride, second.stride) == ((2, 2), (1, 1))


@pytest.mark.parametrize('depth', [18, 26])
@pytest.mark.parametrize('zero_init_residual', [True, False])
def test_zero_init_residual(depth, zero_init_residual):
    backbone = ACmixResNet(depth, base_channels=8, zero_init_residual=zero_init_residual)
    backbone.init_weights()
    for block in (*backbone.layer1, *backbone.layer4):
        norms = [block.norm1, block.norm2] + ([block.norm3] if depth == 26 else [])
        expected = [1.0] * (len(norms) - 1) + [1.0 - zero_init_residual]
        assert [norm.weight.unique().item() for norm in norms] == expected


def test_stages_with_dcn_keep_their_deformable_convolutions():
    backbone = randomized(dcn=DCN, stage_with_dcn=(False, True, True, True))
    kinds = [{type(block.conv2) for block in getattr(backbone, f'layer{i}')} for i in range(1, 5)]
    assert kinds == [{ACmix}] + [{ModulatedDeformConv2dPack}] * 3
    assert DCN['fallback_on_stride'] is False, 'the config is as it was'
    sum(out.square().mean() for out in backbone(torch.randn(2, 3, 32, 32))).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_dcn_falls_back_on_stride():
    dcn = DCN | dict(fallback_on_stride=True)
    for style, first in [('pytorch', ACmix), ('caffe', ModulatedDeformConv2dPack)]:
        backbone = randomized(dcn=dcn, stage_with_dcn=(True,) * 4, style=style)
        kinds = [type(block.conv2) for block in backbone.layer2]
        assert kinds == [first, ModulatedDeformConv2dPack]
        assert type(backbone.layer1[0].conv2) is ModulatedDeformConv2dPack


def test_plugins_are_where_they_are_asked_for():
    backbone = randomized(plugins=PLUGINS, with_cp=True)
    with_plugin = [name for name, m in backbone.named_modules() if isinstance(m, ContextBlock)]
    assert with_plugin == [
        'layer1.0.context_block_last',
        *(
            f'layer{i}.{j}.context_block{postfix}'
            for i, num_blocks in [(2, 2), (3, 4), (4, 1)]
            for j in range(num_blocks)
            for postfix in ('', '_first', '_last')
        ),
    ]
    channels = {m.in_channels for m in backbone.layer2.modules() if isinstance(m, ContextBlock)}
    assert channels == {16, 64}
    sum(out.square().mean() for out in backbone(torch.randn(2, 3, 32, 32))).backward()
    assert all(p.grad is not None for p in backbone.layer3[0].context_block.parameters())


def test_synchronized_norms():
    backbone = ACmixResNet(26, base_channels=8, norm_cfg=dict(type='SyncBN'), norm_eval=True)
    randomize(backbone)
    norms = [m for m in backbone.train().modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(norms) == 1 + 3 * 8 + 4
    assert not any(norm.training for norm in norms)
    assert backbone(torch.randn(1, 3, 32, 32))[-1].shape == (1, 256, 1, 1)


@pytest.mark.parametrize('depth', [50, 101, 152])
def test_layers_of_learning_rates_are_those_of_mmpretrain(depth):
    narrow = dict(depth=depth, stem_channels=8, base_channels=8)
    theirs, ours = mmpretrain('models.backbones').ResNet(**narrow), ACmixResNet(**narrow)
    names = [f'backbone.{name}' for name, _ in theirs.named_parameters()] + ['head.fc.weight']
    layers = {name: ours.get_layer_depth(name, 'backbone.') for name in names}
    assert layers == {name: theirs.get_layer_depth(name, 'backbone.') for name in names}
    assert ours.get_layer_depth('layer2.3.conv2.mix.alpha')[0] == (2 if depth == 152 else 3)


def test_layers_of_learning_rates_of_fewer_stages():
    backbone = ACmixResNet(18, base_channels=8, num_stages=3, strides=(1, 2, 2), dilations=(1,) * 3,
                           out_indices=(2,))  # fmt: skip
    names = ('conv1.weight', 'layer1.1.conv1.mix.alpha', 'layer2.0.bn1.bias', 'layer3.1.bn1.bias')
    assert [backbone.get_layer_depth(name) for name in names] == [(i, 5) for i in range(4)]


class TestInitialStatistics:
    """BatchNorm that keeps mean 0 and variance 1 during training does not normalize."""

    @pytest.fixture
    def messages(self, monkeypatch) -> list[str]:
        messages = []
        record = lambda message, *_, **__: messages.append(message)  # noqa: E731
        monkeypatch.setattr('acmix_mm.backbones.common.print_log', record)
        return messages

    def test_warns_once(self, messages):
        for _ in range(2):
            ACmixResNet(26, base_channels=8).train().train()
        assert len(messages) == 2
        assert '29 BatchNorm layers do not normalize' in messages[0]
        assert 'set norm_eval=False and frozen_stages=-1' in messages[0]

    def test_warns_of_frozen_stages(self, messages):
        ACmixResNet(26, base_channels=8, norm_eval=False, frozen_stages=1).train()
        assert '5 BatchNorm layers do not normalize' in messages[0]

    def test_says_nothing_of_norms_that_are_trained(self, messages):
        ACmixResNet(26, base_channels=8, norm_eval=False).train()
        assert not messages

    def test_says_nothing_at_inference(self, messages):
        ACmixResNet(26, base_channels=8, frozen_stages=4).eval()
        assert not messages

    def test_says_nothing_of_a_checkpoint(self, messages, tmp_path):
        plain = ACmixResNet(26, base_channels=8, stage_with_acmix=(False,) * 4)
        randomize(plain)
        path = str(tmp_path / 'plain.pth')
        torch.save(plain.state_dict(), path)
        backbone = ACmixResNet(26, base_channels=8, frozen_stages=1, pretrained=path)
        backbone.init_weights()
        backbone.train()
        assert not messages

    @pytest.mark.parametrize('loaded', [False, True])
    def test_two_changed_lines_of_a_config_of_mmseg(self, messages, loaded):
        """A config may rely on mmseg's default norm_eval=False, which is not ours."""
        registry = pytest.importorskip('mmseg.registry')
        cfg = get_config('mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py').model
        cfg.pretrained = None
        cfg.backbone.update(type='ACmixResNet', deep_stem=True, depth=26, base_channels=8)
        del cfg.backbone['norm_eval']
        cfg.decode_head.in_channels, cfg.auxiliary_head.in_channels = 256, 128
        with DefaultScope.overwrite_default_scope('mmseg'):
            model = registry.MODELS.build(cfg)
        if loaded:
            randomize(model.backbone)
        model.train()
        assert [message[:43] for message in messages] == (
            [] if loaded else ['ACmixResNet: 31 BatchNorm layers do not nor']
        )


class TestCheckpoints:
    @staticmethod
    def load(path, checkpoint, monkeypatch, **kwargs) -> tuple[ACmixResNet, str]:
        """A backbone that starts from a file, and what it logged about that."""
        messages = []
        record = lambda message, *_, **__: messages.append(message)  # noqa: E731
        monkeypatch.setattr('acmix_mm.backbones.loading.print_log', record)
        torch.save(checkpoint, path)
        init_cfg = dict(type='Pretrained', checkpoint=str(path))
        backbone = _ReleasedSize(26, init_cfg=init_cfg, **kwargs)
        backbone.init_weights()
        (message,) = messages
        return backbone, message

    def test_released_classifier(self, tmp_path, monkeypatch):
        golden = Golden.load('resnet_1111')
        backbone, message = self.load(
            tmp_path / 'released.pth', {'state_dict': golden.state_dict}, monkeypatch
        )
        assert torch.equal(
            backbone.layer4[0].conv2.mix.beta, golden.state_dict['layer4.0.conv2.rate2']
        )
        assert 'from a checkpoint of released ResNet-ACmix classifier' in message
        assert 'classifier head: 2 (fc.bias, fc.weight)' in message
        assert 'left unchanged' not in message

    def test_plain_resnet_loads_all_but_its_3x3_convolutions(self, tmp_path, monkeypatch):
        plain = ACmixResNet(50, stage_with_acmix=(False,) * 4, base_channels=8).state_dict()
        torch.manual_seed(0)
        plain = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in plain.items()}
        plain |= {'fc.weight': torch.zeros(10, 256), 'fc.bias': torch.zeros(10)}
        kept = {k: v for k, v in plain.items() if k.split('.')[1] == '0' or 'layer' not in k}
        backbone, message = self.load(tmp_path / 'plain.pth', kept, monkeypatch, base_channels=8)
        state_dict = backbone.state_dict()
        for name, tensor in kept.items():
            if not name.endswith('.conv2.weight') and not name.startswith('fc.'):
                assert torch.equal(state_dict[name], tensor), name
        assert torch.equal(
            backbone.layer1[0].conv2.shift_conv.kernel[0], torch.eye(9).view(9, 3, 3)
        )
        convs = ', '.join(f'layer{i}.0.conv2.weight' for i in range(1, 5))
        assert f'but not in the model: 4 ({convs})' in message
        assert 'left unchanged: 32 (layer*.*.conv2.' in message

    def test_ours_pass_untouched(self, tmp_path):
        source, target = randomized(), randomized()
        nn.init.normal_(source.conv1.weight)
        target.load_state_dict(source.state_dict())
        x = torch.randn(2, 3, 32, 32)
        for ours, theirs in zip(target.eval()(x), source.eval()(x), strict=True):
            assert torch.equal(ours, theirs)

    def test_pretrained_is_short_for_init_cfg(self, tmp_path):
        source = randomized()
        torch.save(source.state_dict(), tmp_path / 'ours.pth')
        target = ACmixResNet(26, base_channels=8, pretrained=str(tmp_path / 'ours.pth'))
        target.init_weights()
        for name, tensor in source.state_dict().items():
            assert torch.equal(target.state_dict()[name], tensor), name

    def test_other_networks_are_refused(self):
        with pytest.raises(ValueError, match='ACmixResNet cannot load this checkpoint'):
            randomized().load_state_dict({'transformer.wte.weight': torch.zeros(1)}, strict=False)


class TestStockBackbones:
    """ACmix inside networks that know nothing of it."""

    def test_as_dcn_of_mmdet_resnet(self):
        resnet = pytest.importorskip('mmdet.models').ResNet
        backbone = resnet(
            50,
            base_channels=8,
            norm_eval=False,
            dcn=dict(type='ACmix', num_heads=2),
            stage_with_dcn=(False, False, True, True),
        )
        backbone.init_weights()
        assert {type(b.conv2) for b in backbone.layer2} == {nn.Conv2d}
        assert {type(b.conv2) for b in backbone.layer3} == {ACmix}
        assert torch.equal(
            backbone.layer4[0].conv2.shift_conv.kernel[0], torch.eye(9).view(9, 3, 3)
        )
        outs = backbone(torch.randn(1, 3, 65, 70))
        assert [out.shape[-2:] for out in outs] == [(17, 18), (9, 9), (5, 5), (3, 3)]
        outs[-1].sum().backward()
        assert backbone.layer3[0].conv2.mix.beta.grad is not None

    def test_as_conv_cfg_of_mmseg_resnet(self):
        resnet = pytest.importorskip('mmseg.models').ResNetV1c
        backbone = resnet(
            depth=18,
            base_channels=8,
            dilations=(1, 1, 2, 4),
            strides=(1, 2, 1, 1),
            conv_cfg=dict(type='ACmix'),
            in_channels=4,
            stem_channels=8,
        )
        backbone.init_weights()
        assert not any(m.kernel_size != (1, 1) for m in backbone.modules() if type(m) is nn.Conv2d)
        outs = backbone(torch.randn(2, 4, 32, 40))
        assert outs[-1].shape == (2, 64, 4, 5)
