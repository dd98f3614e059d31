"""Every operator and backend under autocast."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from versions import needs_compiler, needs_half_on_cpu, needs_torch

from acmix_mm.ops import (
    Projection,
    available_backends,
    neighborhood_aggregation,
    neighborhood_attention,
    pointwise_conv,
    shift_conv,
    window_attention,
)

OPERATORS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    'neighborhood_attention': (
        partial(neighborhood_attention, kernel_size=3),
        [(1, 2, 4, 5, 6)] * 3,
    ),
    'neighborhood_aggregation': (
        partial(neighborhood_aggregation, kernel_size=3),
        [(1, 2, 9, 5, 6), (1, 4, 5, 6)],
    ),
    'shift_conv': (
        lambda *tensors, backend: shift_conv(
            tensors[:2], *tensors[2:5], backend=backend, projection=Projection(*tensors[5:])
        ),
        [
            *[(1, 1, 2, 5, 6), (1, 2, 2, 5, 6), (1, 9, 3), (1, 9), (1, 4, 9, 3, 3)],
            *[(1, 3, 5, 6), (6, 3), (6,)],
        ],
    ),
    'pointwise_conv': (
        lambda *tensors, backend: torch.cat(pointwise_conv(*tensors, 2, backend=backend)),
        [(1, 3, 5, 6), (4, 3), (4,)],
    ),
    'window_attention': (
        lambda qkv, bias, *masks, backend: window_attention(qkv, bias, 2, masks, backend=backend),
        [(1, 4, 6, 3, 2, 5), (2, 4, 4), (1, 2, 2), (1, 2, 2)],
    ),
}
# Tensors of shift_conv that it takes in single precision: all weights.
IN_SINGLE_PRECISION = (2, 3, 4, 6, 7)
CASES = [
    pytest.param(name, backend, id=f'{name}-{backend}')
    for name in OPERATORS
    for backend in (None, *available_backends(name))
    # Interpreted Triton has no bfloat16, and some compiled operators have single precision only.
    if backend != 'triton'
    and (name, backend) not in (('pointwise_conv', 'cpu'), ('window_attention', 'cpu'))
]
DTYPES = [torch.bfloat16, pytest.param(torch.float16, marks=needs_half_on_cpu)]


def inputs(name: str) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape) for shape in OPERATORS[name][1]]


def mixed(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors in different precisions."""
    dtypes = [torch.float32, torch.bfloat16, torch.float16]
    return [tensor.to(dtypes[i % 3]) for i, tensor in enumerate(tensors)]


@pytest.mark.parametrize(('name', 'backend'), CASES)
@pytest.mark.parametrize('dtype', DTYPES)
def test_tensors_are_cast(name, backend, dtype):
    function = partial(OPERATORS[name][0], backend=backend)
    leaves = [tensor.requires_grad_() for tensor in mixed(inputs(name))]
    with torch.autocast('cpu', dtype):
        out = function(*leaves)
    assert out.dtype == dtype
    single = IN_SINGLE_PRECISION if name == 'shift_conv' else ()
    cast = (t.to(torch.float32 if i in single else dtype) for i, t in enumerate(leaves))
    assert torch.equal(out, function(*cast))
    out.float().sum().backward()
    # Backends read either the maps or the input of the projection.
    used = [leaf for leaf in leaves if leaf.grad is not None]
    assert len(used) >= len(leaves) - (3 if name == 'shift_conv' else 0)
    assert all(leaf.grad.dtype == leaf.dtype and leaf.grad.isfinite().all() for leaf in used)


@pytest.mark.parametrize(('name', 'backend'), CASES)
def test_double_precision_is_kept(name, backend):
    function = partial(OPERATORS[name][0], backend=backend)
    tensors = [tensor.double() for tensor in inputs(name)]
    with torch.autocast('cpu', torch.bfloat16):
        out = function(*tensors)
    assert torch.equal(out, function(*tensors))


def test_dense_weights_are_multiplied_in_single_precision():
    """Weights that nearly cancel: rounded to bfloat16 first, nothing of their sum is left."""
    fc_weight = torch.tensor([1.0, -1.0]).repeat(9, 1).unsqueeze(0) * (1 + 2**-10)
    fc_weight[..., 1] += 2**-10
    kernel = torch.eye(9).view(1, 1, 9, 3, 3)
    x, projection = torch.ones(1, 1, 3, 3), torch.ones(2, 1)
    with torch.autocast('cpu', torch.bfloat16):
        out = shift_conv(
            torch.ones(1, 2, 1, 3, 3), fc_weight, None, kernel,
            backend='dense', projection=Projection(x, projection, None),
        )  # fmt: skip
    assert out.dtype == torch.bfloat16
    assert out[0, 0, 1, 1].item() == pytest.approx(9 * 2**-10, rel=1e-2)


@needs_torch('2.4', 'autocast of attention on CPUs')
def test_attention_of_torch_has_the_same_rule():
    q, k, v = mixed(inputs('neighborhood_attention'))
    with torch.autocast('cpu', torch.bfloat16):
        theirs, ours = F.scaled_dot_product_attention(q, k, v), neighborhood_attention(q, k, v, 3)
        assert ours.dtype == theirs.dtype
    with pytest.raises(TypeError, match='k and q must have the same dtype'):
        neighborhood_attention(q, k, v, 3)


def test_autocast_may_be_off_within():
    tensors = inputs('neighborhood_attention')
    with torch.autocast('cpu', torch.bfloat16), torch.autocast('cpu', enabled=False):
        out = neighborhood_attention(*tensors, 3)
    assert torch.equal(out, neighborhood_attention(*tensors, 3))


def test_tensors_without_data():
    q, k, v = (tensor.to('meta') for tensor in inputs('neighborhood_attention'))
    with torch.autocast('cpu', torch.bfloat16):
        assert neighborhood_attention(q, k, v, 3).dtype == torch.float32


@needs_compiler
def test_compiles_without_graph_breaks():
    def attend(q, k, v):
        with torch.autocast('cpu', torch.bfloat16):
            return neighborhood_attention(q, k, v, 3)

    tensors = inputs('neighborhood_attention')
    torch.compiler.reset()
    compiled = torch.compile(attend, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(*tensors), attend(*tensors))
