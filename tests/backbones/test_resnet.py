import pytest
import torch
from golden import Golden, relative_error
from torch import nn

from acmix_mm.backbones import ACmixResNet
from acmix_mm.layers import ACmix
from acmix_mm.registry import MODELS


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


def test_equals_released_resnet():
    golden = Golden.load('resnet_1111')
    backbone = _ReleasedSize(26).double().eval()
    incompatible = backbone.load_state_dict(golden.state_dict, strict=False)
    assert not incompatible.missing_keys
    for i, out in enumerate(backbone(golden.input), 1):
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
    for with_cp in (False, True):
        backbone = randomized(with_cp=with_cp)
        outs = backbone(x)
        sum(out.square().mean() for out in outs).backward()
        gradients = [p.grad for p in backbone.parameters()]
        statistics = [b for b in backbone.buffers() if b.is_floating_point()]
        results.append([*outs, *gradients, *statistics])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(checkpointed, plain)


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
        (dict(depth=18), r'depth must be in \[26, 38, 50, 101\], got 18'),
        (dict(num_stages=5), 'num_stages must be 1 to 4, got 5'),
        (dict(out_indices=(0, 4)), r'out_indices must be stages from 0 to 3, got \(0, 4\)'),
        (dict(style='torch'), "style must be .* got 'torch'"),
        (dict(frozen_stages=5), 'frozen_stages must be .* got 5'),
        (dict(strides=(1, 2)), r'strides must have 4 values, one for each stage, got \(1, 2\)'),
        (dict(stage_with_acmix=(True,)), 'stage_with_acmix must have 4 values'),
        (dict(pretrained='a.pth', init_cfg=dict(type='Normal')), "pretrained='a.pth' and init_cfg"),
        (dict(base_channels=6), 'multiple of num_heads=4, got 6'),
    ],
)
def test_refuses(change, says):
    with pytest.raises(ValueError, match=says):
        ACmixResNet(**(dict(depth=26, base_channels=8) | change))


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
