"""Which precisions the layers use on devices such as Apple's GPUs, which have no float64."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from acmix_mm.layers import ACmix, PatchwiseACmix, SpatialReductionACmix, WindowACmix
from acmix_mm.layers.acmix import coordinates
from acmix_mm.ops import available_backends, use_backend


class NoDouble(TorchDispatchMode):
    """Mode in which no tensor can have double precision."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        for tensor in tree_flatten(result)[0]:
            assert not isinstance(tensor, Tensor) or tensor.dtype != torch.float64, f'{func} did'
        return result


def test_double_precision_is_noticed():
    with NoDouble(), pytest.raises(AssertionError, match='ones'):
        torch.ones(1, dtype=torch.float64)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    'backend',
    [b for b in available_backends('neighborhood_attention') if b != 'triton'],
)
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
def test_nothing_is_in_double_precision(make, shape, backend, dtype):
    layer, x = make().to(dtype), torch.randn(shape, dtype=dtype)
    with NoDouble(), use_backend(backend, 'neighborhood_attention'):
        layer(x).float().square().sum().backward()
        coordinates.__wrapped__(9, 10, dtype, x.device)  # those of the layer may be cached
