from functools import partial

import pytest
import torch
from torch import nn
from versions import needs_half_on_cpu

from acmix_mm.layers import ACmix, PatchwiseACmix, SpatialReductionACmix, WindowACmix


@pytest.mark.parametrize(
    'dtype', [torch.bfloat16, pytest.param(torch.float16, marks=needs_half_on_cpu)]
)
@pytest.mark.parametrize(
    ('make', 'shape'),
    [
        (partial(ACmix, 8, 8), (1, 8, 5, 6)),
        (partial(PatchwiseACmix, 8, 2, 8), (1, 8, 5, 6)),
        (partial(SpatialReductionACmix, 8, 2, sr_ratio=2), (1, 5, 6, 8)),
        (partial(WindowACmix, 8, 2), (1, 5, 6, 8)),
    ],
    ids=['ACmix', 'PatchwiseACmix', 'SpatialReductionACmix', 'WindowACmix'],
)
def test_layers_return_what_convolutions_return(make, shape, dtype):
    torch.manual_seed(0)
    layer, x = make(), torch.randn(shape)
    expected = layer(x)
    with torch.autocast('cpu', dtype):
        out, like = layer(x), nn.Conv2d(shape[1], 8, 1)(x)
    assert out.dtype == like.dtype == dtype
    rounding = 2e-2 * expected.abs().max().item()
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=rounding)
