"""Tensors that reach beyond 2^31 elements, where 32-bit offsets overflow."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from acmix_mm.ops import (
    Projection,
    available_backends,
    neighborhood_attention,
    pointwise_conv,
    shift_conv,
)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Tensor]:
    """Many gigabytes, of which the file system keeps what is written and nothing else."""
    file = tmp_path / 'sparse'
    yield torch.from_file(str(file), shared=True, size=9 * 2**30)
    file.unlink()


def spread(memory: Tensor, like: Tensor, start: int = 0) -> Tensor:
    """A copy of a small tensor with large strides.

    That of the first axis does not fit 32 bits; the others do, but not their sums.
    """
    strides = [2**29 + 64 * 8**axis for axis in range(like.dim())]
    strides[0] += 2**31
    return memory.as_strided(like.shape, strides, start).copy_(like)


@pytest.mark.parametrize('backend', available_backends('neighborhood_attention'))
def test_attention(memory, backend):
    near = [tensor.requires_grad_() for tensor in torch.randn(3, 2, 2, 3, 4, 4).unbind()]
    with torch.no_grad():
        far = [spread(memory, tensor, 8 * i) for i, tensor in enumerate(near)]
    results = []
    for leaves, name in ((near, 'reference'), ([t.requires_grad_() for t in far], backend)):
        out = neighborhood_attention(*leaves, 3, backend=name)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize('backend', available_backends('shift_conv'))
def test_shift_conv(memory, backend):
    x, weights = torch.randn(2, 6, 4, 4), (torch.randn(1, 9, 3), torch.randn(1, 2, 9, 3, 3))
    results = []
    for leaf, name in ((x.clone(), 'reference'), (spread(memory, x), backend)):
        maps = leaf.requires_grad_().unflatten(1, (3, 2))
        projection = Projection(leaf, torch.eye(6), None)
        arguments = (maps, weights[0], None, weights[1])
        out = shift_conv(*arguments, backend=name, projection=projection)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaf)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('backend', available_backends('pointwise_conv'))
def test_pointwise_conv(memory, backend):
    x, weight, bias = torch.randn(2, 3, 4, 4), torch.randn(8, 3), torch.randn(8)
    results = []
    for leaf, name in ((x.clone(), 'reference'), (spread(memory, x), backend)):
        outs = pointwise_conv(leaf.requires_grad_(), weight, bias, 2, name)
        results.append([*outs, *torch.autograd.grad(outs[1].square().sum(), leaf)])
    torch.testing.assert_close(*results)
