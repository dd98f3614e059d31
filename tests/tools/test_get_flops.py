"""tools/analysis/get_flops.py agrees with formulas that are worked out by hand."""

from pathlib import Path

import pytest
import torch
from torch import nn

from acmix_mm.backbones import ACmixResNet
from acmix_mm.complexity import Complexity, measure_complexity, measure_parts

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def get_flops(tool):
    return tool('analysis/get_flops.py')


def acmix_layer(c: int, pixels: int, stride: int) -> int:
    """Return the multiply-adds of ACmix(c, c) with 4 heads and a 7x7 window."""
    fewer = pixels // stride**2
    projections = pixels * c * 3 * c + pixels * 2 * c // 4
    attention = fewer * c * 2 * 49
    return projections + attention + pixels * (c // 4) * 12 * 9 + fewer * c * 9 * 9


def test_backbone():
    """ResNet-26-ACmix: 1, 2, 4 and 1 bottlenecks behind a stem of stride 4."""
    side, c_in, macs, params = 64, 16, 32 * 32 * 3 * 16 * 49, 3 * 16 * 49 + 2 * 16
    pixels = (side // 4) ** 2
    for stage, blocks in enumerate((1, 2, 4, 1)):
        c = 16 * 2**stage
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            fewer = pixels // stride**2
            macs += pixels * c_in * c + acmix_layer(c, pixels, stride) + fewer * c * 4 * c
            params += c_in * c + 3 * c * (c + 1) + c // 4 * 3 + 9 * 12 + 81 * c + 2 + 4 * c * c
            params += 2 * (c + c + 4 * c)  # norms
            if block == 0:
                macs += fewer * c_in * 4 * c
                params += c_in * 4 * c + 2 * 4 * c
            pixels, c_in = fewer, 4 * c
    with torch.device('meta'):
        backbone = ACmixResNet(26, base_channels=16)
        complexity = measure_complexity(backbone, torch.empty(1, 3, side, side))
    assert complexity == Complexity(params, macs)


class Head(nn.Module):
    """Computes something outside of its layers, and is called through ``predict``."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1, bias=False)

    def forward(self, x):
        return self.conv(x) @ torch.ones(5, 5)

    def predict(self, x):
        return self.forward(x) @ torch.ones(5, 5)


class Model(nn.Module):
    """Has a layer that belongs to two parts, a part that is not run, and a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5, 5))
        self.body = nn.Conv2d(3, 4, 1, bias=False)
        self.head = Head()
        self.twin = nn.Sequential(self.head.conv)
        self.auxiliary = nn.Linear(7, 2)

    def forward(self, x):
        return self.head.predict(self.body(x)) @ self.scale


def test_parts():
    model = Model()
    before = [set(vars(module)) for module in model.modules()]
    parts = measure_parts(model, lambda: model(torch.rand(1, 3, 5, 5)))
    product = 4 * 5 * 5 * 5
    assert parts == {
        'body': Complexity(12, 25 * 12),
        'head': Complexity(16, 25 * 16 + 2 * product),
        'twin': Complexity(0, 0),
        'auxiliary': Complexity(16, 0),
        '': Complexity(25, product),
    }
    assert [set(vars(module)) for module in model.modules()] == before
    assert model.training


def convs(sizes, *channels):
    """Return the multiply-adds of 3x3 convolutions with given channels on maps of given sides."""
    return 9 * sum(side**2 for side in sizes) * sum(a * b for a, b in channels)


def test_retinanet(get_flops):
    parts = get_flops.main([
        str(ROOT / 'configs/resnet_acmix/retinanet_resnet26-acmix_fpn_1x_coco.py'), '--shape', '64'
    ])  # fmt: skip
    tower = [(256, 256)] * 8 + [(256, 9 * 80), (256, 9 * 4)]
    assert parts['bbox_head'].macs == convs((8, 4, 2, 1, 1), *tower)
    lateral = 256 * (64 * 512 + 16 * 1024 + 4 * 2048)
    downward = convs((1,), (2048, 256), (256, 256))
    assert parts['neck'].macs == lateral + convs((8, 4, 2), (256, 256)) + downward
    with torch.device('meta'):
        backbone = measure_complexity(ACmixResNet(26), torch.empty(1, 3, 64, 64))
    assert parts['backbone'] == backbone


def test_two_stages_are_counted_at_as_many_boxes_as_they_may_have(get_flops, capsys):
    config = str(ROOT / 'configs/mask_rcnn_acmix.py')
    parts = get_flops.main([config, '--shape', '64', '96'])
    box = 256 * 49 * 1024 + 1024 * 1024 + 1024 * (81 + 80 * 4)
    mask = convs((14,), *[(256, 256)] * 4) + 28 * 28 * (256 * 256 + 256 * 80)
    assert parts['roi_head'].macs == 1000 * box + 100 * mask
    total = sum(part.params for part in parts.values())
    out = capsys.readouterr().out
    assert '64x96' in out
    assert out.splitlines()[-1].split()[:2] == ['model', f'{total / 1e6:.3f}']


@pytest.mark.parametrize(
    ('config', 'names'),
    [
        ('pvt_acmix/mask-rcnn_pvt-t-acmix_fpn_1x_coco.py', 'backbone neck rpn_head roi_head'),
        ('pvt_acmix/sem-fpn_pvt-t-acmix_8xb4-40k_ade20k-512x512.py', 'backbone neck decode_head'),
        ('san_acmix/retinanet_san10-acmix_fpn_1x_coco.py', 'backbone neck bbox_head'),
        ('san_acmix/sem-fpn_san10-acmix_8xb4-40k_ade20k-512x512.py', 'backbone neck decode_head'),
        ('swin_acmix/retinanet_swin-t-acmix_fpn_1x_coco.py', 'backbone neck bbox_head'),
        ('swin_acmix/mask2former_swin-t-acmix_8xb2-160k_ade20k-512x512.py', 'backbone decode_head'),
        (
            'resnet_acmix/upernet_resnet50-acmix_4xb4-160k_ade20k-512x512.py',
            'backbone decode_head auxiliary_head',
        ),
    ],
)
def test_every_family_in_both_tasks(get_flops, config, names):
    parts = get_flops.main([str(ROOT / 'configs' / config), '--shape', '64'])
    used = {name for name, part in parts.items() if part.params}
    assert used == set(names.split())
    assert {name for name, part in parts.items() if part.macs} == used - {'auxiliary_head'}


def test_shape(get_flops):
    assert get_flops.parse_args(['c.py', '--shape', '224']).shape == [224]
    with pytest.raises(SystemExit):
        get_flops.parse_args(['c.py', '--shape', '1', '2', '3'])


@pytest.mark.parametrize('size', ['0', '-64', '1.5', 'large'])
def test_planted_shape(get_flops, size, capsys):
    with pytest.raises(SystemExit):
        get_flops.parse_args(['c.py', '--shape', size])
    assert 'argument --shape: must be a whole number of at least 1' in capsys.readouterr().err


def test_planted_depth(get_flops):
    config = str(ROOT / 'configs/demo/sem-fpn_resnet26-acmix_shapes.py')
    with pytest.raises(
        SystemExit, match=r'model\.backbone \(ACmixResNet\): ACmixResNet: depth must'
    ):
        get_flops.main([config, '--cfg-options', 'model.backbone.depth=27'])
