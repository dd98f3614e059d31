"""Float32 attention whose logits are so large that their rounding shows.

A logit of size L is rounded to about ``L * 2**-24``, and an error e of a logit changes its weight
by the factor ``exp(e)``. That bounds what any implementation in float32 can do: PyTorch's softmax
and the compiled kernels stay within the same bound. From ``2**23`` on, neighboring numbers are 1
or more apart in float32; results stay finite, and each is an average of values.
"""

import pytest
import torch
from torch import Tensor

from acmix_mm.ops import available_backends, neighborhood_attention

EPS = torch.finfo(torch.float32).eps
SHAPES = [(1, 4, 7, 9), (2, 16, 9, 8), (1, 1, 12, 11), (4, 8, 8, 20)]
# PyTorch's fused attention, which the tiled backend calls, has no finite gradients there.
BACKENDS = [
    name for name in ('reference', 'cpu') if name in available_backends('neighborhood_attention')
]


def case(seed: int, largest: float) -> tuple[list[Tensor], Tensor, float, int]:
    """Return q, k, v, the gradient of the result, a scale and a kernel size."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, *SHAPES[seed % 4])
    q, k, v, grad = torch.randn(4, *shape, generator=generator).unbind()
    if seed % 2:  # keys that are nearly alike: large logits that nearly cancel
        k = k[..., :1, :1] + k * 10 ** -float(torch.rand((), generator=generator) * 9)
    scale = largest ** float(torch.rand((), generator=generator))
    return [q, k, v], grad, scale, (3, 5, 7)[seed % 3]


def largest_logit(tensors: list[Tensor], scale: float) -> float:
    q, k, _ = tensors
    return scale * float(q.norm(dim=2).max() * k.norm(dim=2).max())


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('seed', range(60))
def test_error_is_that_of_rounded_logits(backend, seed):
    tensors, _, scale, kernel_size = case(seed, 1e12)
    exact = [tensor.double() for tensor in tensors]
    truth = neighborhood_attention(*exact, kernel_size, scale=scale, backend='reference')
    out = neighborhood_attention(*tensors, kernel_size, scale=scale, backend=backend)
    error = float((out - truth).abs().max() / tensors[2].abs().max())
    bound = largest_logit(tensors, scale) * EPS
    assert error <= min(0.25 * bound + 2e-6, 2)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('seed', range(60))
def test_gradients(backend, seed):
    tensors, grad, scale, kernel_size = case(seed, 1e6)

    def gradients(dtype: torch.dtype, backend: str) -> tuple[Tensor, ...]:
        leaves = [tensor.to(dtype).requires_grad_() for tensor in tensors]
        out = neighborhood_attention(*leaves, kernel_size, scale=scale, backend=backend)
        return torch.autograd.grad(out, leaves, grad.to(dtype))

    q, k, v = (tensor.norm(dim=2).max() for tensor in tensors)
    g = grad.norm(dim=2).max()
    # The largest that each gradient can be: a key and a value belong to kernel_size**2 windows.
    largest = (scale * k * v * g, scale * q * v * g * kernel_size**2, g * kernel_size**2)
    bound = largest_logit(tensors, scale) * EPS
    found = gradients(torch.float32, backend)
    truth = gradients(torch.float64, 'reference')
    for result, expected, scale_of in zip(found, truth, largest, strict=True):
        assert result.isfinite().all()
        assert float((result - expected).abs().max() / scale_of) <= 0.25 * bound + 2e-6


@pytest.mark.parametrize('seed', range(20))
def test_beyond_what_float32_tells_apart_results_are_finite(seed):
    tensors, grad, scale, kernel_size = case(seed, 1e12)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    out = neighborhood_attention(*leaves, kernel_size, scale=scale * 1e8)
    assert out.detach().abs().max() <= leaves[2].detach().abs().max() * (1 + 1e-5)
    for result in torch.autograd.grad(out, leaves, grad):
        assert result.isfinite().all()
