"""What the layers attend to, against the definition of each family's attention."""

import math
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from acmix_mm.layers import ACmix, PatchwiseACmix, SpatialReductionACmix, WindowACmix
from acmix_mm.layers.attention_maps import (
    acmix_layers,
    attention_map,
    path_outputs,
    recorded_inputs,
)

PATCHWISE = dict(rel_channels=2, out_channels=8, share_channels=4)


def randomized(layer: nn.Module) -> nn.Module:
    """A float64 layer in eval mode, away from its start, whose equal weights hide errors."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in layer.state_dict().items():
            if tensor.is_floating_point():
                random = torch.rand if name.endswith('running_var') else torch.randn
                tensor.copy_(0.2 + 0.5 * random(tensor.shape))
    return layer.double().eval()


def channels_last(layer: Any) -> bool:
    return isinstance(layer, WindowACmix | SpatialReductionACmix)


def an_input(layer: Any, height: int, width: int) -> Tensor:
    torch.manual_seed(1)
    shape = (height, width, 8) if channels_last(layer) else (8, height, width)
    return torch.randn(2, *shape).double()


def window_by_definition(length: int, center: int, layer: Any) -> list[int]:
    """Pixels of an axis that a window reads, those beyond the border reflected by numpy."""
    dilation = layer.dilation[0] if isinstance(layer, ACmix) else 1
    reach = layer.kernel_att // 2 * dilation
    axis = np.pad(np.arange(length), reach, mode='reflect')
    return axis[center : center + 2 * reach + 1 : dilation].tolist()


def sliding(layer: ACmix, x: Tensor, row: int, column: int) -> tuple[Tensor, Tensor]:
    """Weights (B, N, H, W) and values (B, N, D, H, W), with q_i . (k_j + p_i - p_j)."""
    q, k, v = (t.unflatten(1, (layer.num_heads, -1)) for t in layer.qkv(x))
    height, width = x.shape[2:]
    y, x_ = np.linspace(-1, 1, height), np.linspace(-1, 1, width)
    grid = torch.tensor(np.stack(np.meshgrid(x_, y))).unsqueeze(0)
    p = layer.position(grid)[0]
    row, column = row * layer.stride[0], column * layer.stride[0]
    pixels = [
        (i, j)
        for i in window_by_definition(height, row, layer)
        for j in window_by_definition(width, column, layer)
    ]
    query = q[..., row, column]
    here = p[..., row, column]
    keys = torch.stack([k[..., i, j] + here - p[..., i, j] for i, j in pixels], -1)
    logits = torch.einsum('bnd,bndk->bnk', query, keys) / math.sqrt(query.shape[-1])
    weights = torch.zeros_like(q[:, :, 0])
    for (i, j), weight in zip(pixels, logits.softmax(-1).unbind(-1), strict=True):
        weights[..., i, j] += weight
    return weights, v


def window(layer: WindowACmix, x: Tensor, row: int, column: int) -> tuple[Tensor, Tensor]:
    """Windows begin at the shift, on the map padded by zeros; the rest are smaller windows."""
    side = layer.window_size
    height, width = x.shape[1:3]
    x = nn.functional.pad(x, (0, 0, 0, -width % side, 0, -height % side))
    shift = layer.shift_size
    if min(height, width) <= side and not layer.shift_small_maps:
        shift = 0
    q, k, v = layer.qkv(x).unflatten(-1, (3, layer.num_heads, -1)).permute(3, 0, 4, 5, 1, 2)
    logits = torch.full_like(q[:, :, 0], -torch.inf)
    table = layer.relative_position_bias_table
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            together = (i - shift) // side == (row - shift) // side and (
                (j - shift) // side == (column - shift) // side
            )
            inside = (i < height and j < width) or not layer.mask_padding
            if together and inside:
                bias = table[(row - i + side - 1) * (2 * side - 1) + column - j + side - 1]
                product = (q[..., row, column] * k[..., i, j]).sum(-1)
                logits[..., i, j] = product * layer.scale + bias
    return logits.flatten(2).softmax(-1).view_as(logits), v


def spatial_reduction(layer, x: Tensor, row: int, column: int) -> tuple[Tensor, Tensor]:
    """Softmax over all reduced cells."""
    reduced = x
    if layer.sr_ratio > 1:
        reduced = layer.norm(layer.sr(x.movedim(-1, 1)).movedim(1, -1))
    q = layer.qkv(x)[:, row, column, :8].unflatten(-1, (layer.num_heads, -1))
    kv = layer.qkv(reduced)[..., 8:].unflatten(-1, (2, layer.num_heads, -1))
    k, v = kv.permute(3, 0, 4, 5, 1, 2)
    logits = torch.einsum('bnd,bndhw->bnhw', q, k) / math.sqrt(q.shape[-1])
    return logits.flatten(2).softmax(-1).view_as(logits), v


def patchwise(layer: PatchwiseACmix, x: Tensor, row: int, column: int) -> tuple[Tensor, Tensor]:
    """The MLP of the query and of all keys of the window; weight of each window position."""
    q, k, v = layer.qkv(x).split((layer.rel_channels, layer.rel_channels, 8), 1)
    pixels = [
        (i, j)
        for i in window_by_definition(x.shape[2], row, layer)
        for j in window_by_definition(x.shape[3], column, layer)
    ]
    keys = torch.stack([k[..., i, j] for i, j in pixels], -1).flatten(1)  # channel major
    found = layer.mlp(torch.cat([q[..., row, column], keys], 1)[..., None, None])
    found = found.flatten(1).unflatten(1, (2, -1))  # 2 groups of 4 channels
    weights = x.new_zeros(len(x), 2, *x.shape[2:])
    for (i, j), weight in zip(pixels, found.unbind(-1), strict=True):
        weights[..., i, j] += weight
    return weights, v.unflatten(1, (-1, 2)).transpose(1, 2)  # channel c is of group c % 2


CASES = {
    'sliding': (lambda: ACmix(8, 8, num_heads=2), sliding, (9, 11)),
    'sliding, stride': (lambda: ACmix(8, 8, num_heads=2, stride=2), sliding, (10, 13)),
    'sliding, dilation': (lambda: ACmix(8, 8, 3, num_heads=2, dilation=2), sliding, (7, 6)),
    'sliding, smaller than its window': (lambda: ACmix(8, 8, num_heads=2), sliding, (2, 3)),
    'sliding, attention alone': (
        lambda: ACmix(8, 8, num_heads=2, path_weights=(2, 0)), sliding, (5, 6)
    ),
    'windows': (lambda: WindowACmix(8, 2, 4), window, (8, 12)),
    'windows, padded': (lambda: WindowACmix(8, 2, 4), window, (6, 9)),
    'shifted windows': (lambda: WindowACmix(8, 2, 4, shift_size=2), window, (8, 12)),
    'shifted windows, padded': (lambda: WindowACmix(8, 2, 4, shift_size=2), window, (7, 9)),
    'shifted windows, not rolled, padding masked': (
        lambda: WindowACmix(8, 2, 4, shift_size=1, roll_conv=False, mask_padding=True),
        window, (7, 9),
    ),
    'shifted windows of a small map': (
        lambda: WindowACmix(8, 2, 4, shift_size=2, shift_small_maps=True), window, (4, 9)
    ),
    'small map': (lambda: WindowACmix(8, 2, 4, shift_size=2), window, (4, 9)),
    'global': (lambda: SpatialReductionACmix(8, 2), spatial_reduction, (5, 6)),
    'global, reduced': (lambda: SpatialReductionACmix(8, 2, 2), spatial_reduction, (7, 9)),
    'patchwise': (lambda: PatchwiseACmix(8, kernel_att=3, **PATCHWISE), patchwise, (6, 7)),
    'patchwise, smaller than its window': (
        lambda: PatchwiseACmix(8, kernel_att=7, **PATCHWISE), patchwise, (3, 5)
    ),
}  # fmt: skip


@pytest.fixture(params=CASES, ids=lambda name: name)
def case(request):
    make, definition, size = CASES[request.param]
    layer = randomized(make())
    return layer, an_input(layer, *size), definition


def corners_and_more(layer: Any, x: Tensor) -> list[tuple[int, int]]:
    """Pixels of the output at the corners, at the borders and inside."""
    (out, _) = path_outputs(layer, x)
    assert out is not None
    height, width = out.shape[2:]
    rows, columns = (0, height // 2, height - 1), (0, width // 3, width - 1)
    return [(row, column) for row in rows for column in columns]


def test_equals_the_definition(case):
    layer, x, definition = case
    for row, column in corners_and_more(layer, x):
        expected, _ = definition(layer, x, row, column)
        weights = attention_map(layer, x, row, column)
        torch.testing.assert_close(weights, expected.detach(), rtol=1e-10, atol=1e-10)


def attention_alone(layer: Any, x: Tensor) -> Tensor:
    """The attention path as the layer itself computes it, before an output projection."""
    layer = deepcopy(layer)
    if hasattr(layer, 'proj'):
        layer.proj = nn.Identity()
    if isinstance(layer.mix.alpha, nn.Parameter):
        nn.init.ones_(layer.mix.alpha)
        nn.init.zeros_(layer.mix.beta)
    with torch.no_grad():
        out = layer(x) / float(layer.mix.alpha)
    return out.movedim(-1, 1) if channels_last(layer) else out


def test_weighted_values_are_the_attention_of_the_layer(case):
    layer, x, definition = case
    attention = attention_alone(layer, x)
    for row, column in corners_and_more(layer, x):
        weights = attention_map(layer, x, row, column)
        _, values = definition(layer, x, row, column)
        total = torch.einsum('bnhw,bndhw->bnd', weights, values)
        if isinstance(layer, PatchwiseACmix):
            total = total.transpose(1, 2)
        expected = attention[:, :, row, column]
        torch.testing.assert_close(total.flatten(1), expected, rtol=1e-10, atol=1e-10)


def test_probabilities_sum_to_one(case):
    layer, x, _ = case
    if isinstance(layer, PatchwiseACmix):
        pytest.skip('its weights come without a softmax')
    for row, column in corners_and_more(layer, x):
        weights = attention_map(layer, x, row, column)
        assert (weights >= 0).all()
        ones = torch.ones(2, layer.num_heads, dtype=x.dtype)
        torch.testing.assert_close(weights.sum((2, 3)), ones, rtol=0, atol=1e-10)


def test_paths_sum_to_the_output(case):
    layer, x, _ = case
    attention, convolution = path_outputs(layer, x)
    total = attention if convolution is None else attention + convolution
    expected = layer(x).detach()
    expected = expected.movedim(-1, 1) if channels_last(layer) else expected
    torch.testing.assert_close(total, expected)
    if convolution is not None:
        with torch.no_grad():
            layer.mix.alpha.zero_()
            alone = layer(x)
        alone = alone.movedim(-1, 1) if channels_last(layer) else alone
        torch.testing.assert_close(convolution, alone)


def test_layer_is_left_as_it_was(case):
    layer, x, _ = case
    before = layer(x)
    attention_map(layer, x, 0, 0)
    torch.testing.assert_close(layer(x), before, rtol=0, atol=0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules())
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_no_attention_path():
    layer = ACmix(8, 8, path_weights=(0, 1)).eval()
    x = torch.rand(1, 8, 5, 5)
    with pytest.raises(ValueError, match=r'this ACmix has no attention path.*\(0, 1\)'):
        attention_map(layer, x, 0, 0)
    attention, convolution = path_outputs(layer, x)
    assert attention is None
    torch.testing.assert_close(convolution, layer(x).detach())


@pytest.mark.parametrize('pixel', [(5, 0), (0, 3), (-1, 0)])
def test_pixel_outside(pixel):
    layer = ACmix(8, 8, stride=2).eval()
    with pytest.raises(ValueError, match=r'not in the output of the layer, which is 5x3'):
        attention_map(layer, torch.rand(1, 8, 10, 6), *pixel)


def test_training_mode_is_refused():
    layer = PatchwiseACmix(8, **PATCHWISE)
    before = layer.mlp[0].running_mean.clone()
    with pytest.raises(ValueError, match='training mode'):
        attention_map(layer, torch.rand(1, 8, 5, 5), 0, 0)
    assert torch.equal(layer.mlp[0].running_mean, before)


def test_records_inputs_before_activations_change_them():
    model = nn.Sequential(ACmix(8, 8), nn.ReLU(inplace=True), ACmix(8, 4))
    assert [*acmix_layers(model)] == ['0', '2']
    x = torch.randn(1, 8, 6, 7)
    with recorded_inputs(model) as inputs:
        model(x)
    torch.testing.assert_close(inputs['0'], x)
    torch.testing.assert_close(inputs['2'], model[0](x).relu().detach())
    assert not model[0]._forward_pre_hooks
