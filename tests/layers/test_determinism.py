"""Every layer under ``torch.use_deterministic_algorithms``."""

from functools import partial

import pytest
import torch
from determinism import deterministic, operators_called
from torch import Tensor

from acmix_mm.layers import ACmix, PatchwiseACmix, SpatialReductionACmix, WindowACmix
from acmix_mm.ops import available_backends, use_backend

# What torch refuses on a GPU then, as far as a layer could call it, by the documentation of
# `torch.use_deterministic_algorithms`.
REFUSED = (
    'reflection_pad', 'adaptive_', 'upsample_', 'grid_sampler', 'cumsum', 'put_', 'histc',
    'bincount', 'median', 'scatter_reduce',
)  # fmt: skip
BACKENDS = [
    backend for backend in available_backends('neighborhood_attention') if backend != 'triton'
]


@pytest.mark.parametrize('backend', [*BACKENDS, 'dense', 'composed', 'shifted', 'matmul'])
@pytest.mark.parametrize(
    ('make', 'shape'),
    [
        (partial(ACmix, 8, 8), (1, 8, 9, 10)),
        (partial(PatchwiseACmix, 8, 2, 8), (1, 8, 9, 10)),
        (partial(SpatialReductionACmix, 8, 2, sr_ratio=2), (1, 9, 10, 8)),
        (partial(WindowACmix, 8, 2, shift_size=3), (1, 9, 10, 8)),
    ],
    ids=['ACmix', 'PatchwiseACmix', 'SpatialReductionACmix', 'WindowACmix'],
)
def test_no_operator_is_refused(make, shape, backend):
    torch.manual_seed(0)
    layer, x = make().double(), torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def train() -> list[Tensor]:
        with use_backend(backend):
            out = layer(x)
        return [out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])]

    expected = train()
    # Uninitialized memory is filled with NaN then.
    with deterministic():
        names = operators_called(train)
        torch.testing.assert_close(train(), expected)
    assert not [name for name in names for refused in REFUSED if f'::{refused}' in name]
    assert len(names) > 20, 'the operators were seen'
