import numpy as np
import pytest
import torch
from torch import Tensor
from versions import needs_compiler, needs_half_on_cpu

from acmix_mm.ops import available_backends, neighborhood_aggregation

BACKENDS = available_backends('neighborhood_aggregation')


def definition(weights: Tensor, v: Tensor, kernel_size: int) -> Tensor:
    """Pixel by pixel, from the formula."""
    radius = kernel_size // 2
    padded = np.pad(v.numpy(), ((0, 0), (0, 0), (radius, radius), (radius, radius)), 'reflect')
    out = torch.zeros_like(v)
    for b, c, y, x in np.ndindex(*v.shape):
        window = padded[b, c, y : y + kernel_size, x : x + kernel_size].reshape(-1)
        out[b, c, y, x] = weights[b, c % weights.shape[1], :, y, x] @ torch.from_numpy(window)
    return out


def inputs(size: tuple[int, int], kernel_size: int, batch_size: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    weights = torch.randn(batch_size, 2, kernel_size**2, *size, dtype=torch.float64)
    return weights, torch.randn(batch_size, 6, *size, dtype=torch.float64)


@pytest.mark.parametrize('kernel_size', [1, 3, 7])
@pytest.mark.parametrize('size', [(9, 12), (3, 2), (1, 5), (1, 1)])
@pytest.mark.parametrize('backend', BACKENDS)
def test_equals_definition(size, kernel_size, backend):
    weights, v = inputs(size, kernel_size)
    out = neighborhood_aggregation(weights, v, kernel_size, backend=backend)
    torch.testing.assert_close(out, definition(weights, v, kernel_size))


@pytest.mark.parametrize('size', [(3, 4), (1, 2)])
@pytest.mark.parametrize('backend', BACKENDS)
def test_gradients(size, backend):
    weights, v = (x.requires_grad_() for x in inputs(size, 3, batch_size=1))
    aggregate = lambda w, v: neighborhood_aggregation(w, v, 3, backend=backend)  # noqa: E731
    assert torch.autograd.gradcheck(aggregate, (weights, v))


@pytest.mark.parametrize(
    'dtype', [torch.bfloat16, pytest.param(torch.float16, marks=needs_half_on_cpu)]
)
def test_half_precision(dtype):
    weights, v = inputs((9, 12), 3)
    out = neighborhood_aggregation(weights.to(dtype), v.to(dtype), 3)
    assert out.dtype == dtype
    expected = neighborhood_aggregation(weights, v, 3)
    torch.testing.assert_close(out.double(), expected, atol=0.1, rtol=0.02)


@needs_compiler
def test_compiles_without_graph_breaks():
    weights, v = (x.requires_grad_() for x in inputs((5, 6), 3))
    compiled = torch.compile(neighborhood_aggregation, fullgraph=True, backend='aot_eager')
    out = compiled(weights, v, 3)
    torch.testing.assert_close(out, neighborhood_aggregation(weights, v, 3))
    gradient = torch.autograd.grad(out.sum(), weights)[0]
    expected = torch.autograd.grad(neighborhood_aggregation(weights, v, 3).sum(), weights)[0]
    torch.testing.assert_close(gradient, expected)


def test_empty_batch():
    weights, v = inputs((4, 5), 3)
    assert neighborhood_aggregation(weights[:0], v[:0], 3).shape == (0, 6, 4, 5)


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (dict(kernel_size=2), ValueError, 'kernel_size must be a positive odd integer, got 2'),
        (dict(kernel_size=5), ValueError, r'weights must have shape \(2, G, 25, 4, 5\)'),
        (dict(v=torch.zeros(2, 5, 4, 5)), ValueError, 'G a divisor of 5'),
        (dict(v=torch.zeros(2, 6, 20)), ValueError, r'v must be a non-empty \(B, C, H, W\)'),
        (dict(v=torch.zeros(2, 6, 4, 5).double()), TypeError, 'must have the same dtype'),
        (dict(weights=torch.zeros(2, 2, 9, 20)), ValueError, r'got \(2, 2, 9, 20\)'),
    ],
)
def test_errors(change, error, message):
    fitting = dict(weights=torch.zeros(2, 2, 9, 4, 5), v=torch.zeros(2, 6, 4, 5), kernel_size=3)
    with pytest.raises(error, match=message):
        neighborhood_aggregation(**fitting | change)
