import re
import runpy
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from acmix_mm.backbones import ACmixResNet, ACmixSwin
from acmix_mm.complexity import measure_complexity
from acmix_mm.layers import (
    ACmix,
    PatchwiseACmix,
    ShiftConv,
    SpatialReductionACmix,
    WindowACmix,
)
from acmix_mm.ops import available_backends, pointwise_conv, use_backend

PIXELS = 12 * 20
CONFIGS = Path(__file__).parents[1] / 'configs'


def conv_path(pixels: int, maps: int, map_channels: int, channels: int) -> int:
    """Return the multiply-adds of the fully connected layer and of the grouped convolution."""
    return pixels * (map_channels * maps * 9 + channels * 9 * 9)


@pytest.mark.parametrize('device', ['cpu', 'meta'])
@pytest.mark.parametrize('backend', available_backends('neighborhood_attention'))
def test_sliding_window_layer(backend, device):
    with torch.device(device):
        layer = ACmix(8, 16, kernel_att=7, num_heads=2)
        with use_backend(backend):
            complexity = measure_complexity(layer, torch.empty(3, 8, 12, 20))
    projections = PIXELS * 8 * 3 * 16
    position = PIXELS * 2 * 8
    attention = PIXELS * 16 * 2 * 49
    path = conv_path(PIXELS, maps=6, map_channels=8, channels=16)
    # The position map is made once for all three images.
    assert complexity.macs == 3 * (projections + attention + path) + position
    weights = 3 * 16 * (8 + 1) + 8 * (2 + 1) + 9 * 6 + 16 * 81 + 2
    assert complexity.params == weights


def test_strided_layer():
    layer = ACmix(8, 16, num_heads=2, stride=2)
    few = 6 * 10
    expected = PIXELS * 8 * 3 * 16 + PIXELS * 2 * 8 + few * 16 * 2 * 49
    expected += PIXELS * 8 * 6 * 9 + few * 16 * 81
    assert measure_complexity(layer, torch.empty(1, 8, 12, 20)).macs == expected


@pytest.mark.parametrize('backend', available_backends('shift_conv'))
@pytest.mark.parametrize('pairs', [1, 2])
def test_conv_path(pairs, backend):
    layer = ShiftConv(6, 8, 16, bias=True, num_conv_pairs=pairs)
    expected = pairs * conv_path(PIXELS, maps=6, map_channels=8, channels=16)
    with use_backend(backend):
        assert measure_complexity(layer, torch.empty(1, 6, 8, 12, 20)).macs == expected


@pytest.mark.parametrize('backend', available_backends('pointwise_conv'))
def test_projection(backend):
    class Projection(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return pointwise_conv(x, torch.rand(12, 8), torch.rand(12), 3, backend)

    assert measure_complexity(Projection(), torch.empty(1, 8, 12, 20)).macs == PIXELS * 8 * 12


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_spatial_reduction_layer(device):
    with torch.device(device):
        layer = SpatialReductionACmix(16, num_heads=2, sr_ratio=4)
        complexity = measure_complexity(layer, torch.empty(1, 12, 20, 16))
    few = PIXELS // 16
    projections = PIXELS * 16 * 48 + few * 16 * 32 + PIXELS * 16 * 16
    reduction = few * 16 * 16 * 16
    attention = 2 * PIXELS * few * 16
    path = conv_path(PIXELS, maps=6, map_channels=8, channels=16)
    assert complexity.macs == projections + reduction + attention + path


@pytest.mark.parametrize('device', ['cpu', 'meta'])
@pytest.mark.parametrize('backend', [None, *available_backends('window_attention')])
def test_window_layer(backend, device):
    if (backend, device) == ('cpu', 'meta'):
        pytest.skip('the kernels need tensors on the CPU')
    with torch.device(device):
        layer = WindowACmix(16, num_heads=2, window_size=4, shift_size=2)
        with use_backend(backend, 'window_attention') if backend else nullcontext():
            complexity = measure_complexity(layer, torch.empty(1, 12, 20, 16))
    attention = 2 * PIXELS * 16 * 16
    path = conv_path(PIXELS, maps=6, map_channels=8, channels=16)
    assert complexity.macs == PIXELS * 16 * (48 + 16) + attention + path


def test_patchwise_layer():
    layer = PatchwiseACmix(64, rel_channels=4, out_channels=16, kernel_att=7)
    projections = PIXELS * 64 * (4 + 4 + 16)
    mlp = PIXELS * (50 * 4 * 2 + 2 * 2 * 49)
    path = conv_path(PIXELS, maps=6, map_channels=4, channels=16)
    expected = projections + mlp + PIXELS * 16 * 49 + path
    assert measure_complexity(layer, torch.empty(1, 64, 12, 20)).macs == expected


class Classifier(nn.Module):
    def __init__(self, backbone: nn.Module, channels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(channels, 1000)

    def forward(self, x):
        return self.head(self.backbone(x)[-1].mean((2, 3)))


def test_released_networks():
    """The released code counts 10.488 M; and 28.650 M with 4.649 G FLOPs, norms included."""
    with torch.device('meta'):
        image = torch.empty(1, 3, 224, 224)
        resnet = Classifier(ACmixResNet(26, out_indices=(3,)), 2048)
        swin = Classifier(ACmixSwin(out_indices=(3,)), 768)
    assert measure_complexity(resnet, image).params / 1e6 == pytest.approx(10.488, abs=5e-4)
    complexity = measure_complexity(swin, image)
    assert complexity.params / 1e6 == pytest.approx(28.650, abs=5e-4)
    assert complexity.macs / 1e9 == pytest.approx(4.649, rel=2e-3)


def test_model_is_left_as_it_was():
    layer = nn.Sequential(ACmix(4, 4), nn.BatchNorm2d(4)).train()
    measure_complexity(layer, torch.rand(2, 4, 6, 6))
    assert layer.training
    assert layer[1].num_batches_tracked == 0
    assert layer(torch.rand(2, 4, 6, 6)).abs().sum() > 0


@pytest.mark.parametrize(
    'name',
    [
        'resnet_acmix/retinanet_resnet26-acmix_fpn_1x_coco.py',
        'san_acmix/retinanet_san10-acmix_fpn_1x_coco.py',
        'pvt_acmix/retinanet_pvt-t-acmix_fpn_1x_coco.py',
        'swin_acmix/retinanet_swin-t-acmix_fpn_1x_coco.py',
    ],
)
def test_get_flops_of_mmdet(name, tool, shapes, monkeypatch, capsys):
    """It counts the operators of torch that the backend ``reference`` runs."""
    mmdet = pytest.importorskip('mmdet')
    config = str(CONFIGS / name)
    of_mmdet = f'{mmdet.__path__[0]}/.mim/tools/analysis_tools/get_flops.py'
    data = dict(data_root=f'{shapes}/', ann_file='annotations/instances_val.json')
    data |= {'data_prefix.img': 'val/', 'pipeline.1.scale': '(64,64)'}
    options = [f'val_dataloader.dataset.{key}={value}' for key, value in data.items()]
    workers = ['val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False']
    command = [of_mmdet, config, '--num-images', '1', '--cfg-options', *options, *workers]
    monkeypatch.setattr(sys, 'argv', command)
    with use_backend('reference'):
        runpy.run_path(of_mmdet, run_name='__main__')
    out = capsys.readouterr().out
    theirs = [float(re.search(rf'{what}: ([\d.]+)', out)[1]) for what in ('Flops', 'Params')]

    parts = tool('analysis/get_flops.py').main([config, '--shape', '64']).values()
    assert theirs[0] == pytest.approx(sum(part.macs for part in parts) / 1e9, rel=0.01)
    assert theirs[1] == pytest.approx(sum(part.params for part in parts) / 1e6, abs=1e-3)
