"""The 1x1 convolution in chunks, against ``F.conv2d``."""

import os
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from versions import needs_opcheck

from acmix_mm.ops import available_backends, pointwise_conv
from acmix_mm.ops.backends import cpu

BACKENDS = available_backends('pointwise_conv')
needs_kernels = pytest.mark.skipif(cpu.MISSING is not None, reason='built without the kernels')


def case(seed: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], int]:
    """x, weight and bias, and the number of chunks; sides and channels that fill no vector.

    70 rows of 60 channels are more than the compiled kernel takes at a time.
    """
    rng = random.Random(seed)
    chunks, channels, inputs = rng.choice([1, 2, 3]), rng.choice([1, 4, 7]), rng.choice([1, 3, 60])
    size = (rng.choice([0, 1, 2]), inputs, rng.choice([1, 5, 70]), rng.choice([1, 8, 41]))
    shapes = [size, (chunks * channels, inputs), (chunks * channels,)]
    torch.manual_seed(seed)
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes], chunks


def conv2d(x: Tensor, weight: Tensor, bias: Tensor, chunks: int) -> tuple[Tensor, ...]:
    return F.conv2d(x, weight[..., None, None], bias).chunk(chunks, 1)


def results(operator, tensors, chunks) -> list[Tensor]:
    """The chunks, and the gradients for a loss in which each has another weight."""
    outs = operator(*tensors, chunks)
    loss = sum(i * out.square().sum() for i, out in enumerate(outs, 1))
    return [*outs, *torch.autograd.grad(loss, tensors)]


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('seed', range(int(os.environ.get('ACMIX_SWEEP', 24))))
def test_equals_conv2d(backend, seed):
    tensors, chunks = case(seed)
    ours = results(lambda *a: pointwise_conv(*a, backend=backend), tensors, chunks)
    for mine, expected in zip(ours, results(conv2d, tensors, chunks), strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize('backend', BACKENDS)
def test_any_layout(backend):
    (x, weight, bias), chunks = [torch.randn(2, 6, 5, 9), torch.randn(8, 6), torch.randn(8)], 2
    expected = conv2d(x, weight, bias, chunks)
    last = x.to(memory_format=torch.channels_last)
    outs = pointwise_conv(last, weight.t().contiguous().t(), bias, chunks, backend)
    torch.testing.assert_close(outs, expected)


@needs_kernels
def test_gradients_equal_differences():
    tensors, chunks = case(12)
    assert torch.autograd.gradcheck(
        lambda *t: pointwise_conv(*t, chunks, backend='cpu'), tensors, fast_mode=True
    )


@needs_kernels
def test_a_part_may_be_unused():
    tensors, _ = case(12)
    tensors[1:] = [torch.cat([t, t]).detach().requires_grad_() for t in tensors[1:]]
    ours, theirs = (
        torch.autograd.grad(operator(*tensors, 2)[1].sum(), tensors)
        for operator in (lambda *a: pointwise_conv(*a, backend='cpu'), conv2d)
    )
    torch.testing.assert_close(ours, theirs)


@needs_opcheck
@needs_kernels
def test_registration():
    tensors = [torch.randn(shape).requires_grad_() for shape in ((2, 3, 4, 5), (6, 3), (6,))]
    op = torch.ops.acmix_mm.pointwise_conv_forward.default
    torch.library.opcheck(op, (*tensors, 2))
    x, weight, _ = (t.detach() for t in tensors)
    grads = [torch.randn(2, 3, 4, 5) for _ in range(2)]
    backward = torch.ops.acmix_mm.pointwise_conv_backward.default
    torch.library.opcheck(
        backward, (grads, x, weight), test_utils=['test_schema', 'test_faketensor']
    )


@needs_kernels
def test_second_derivatives_are_those_of_torch():
    tensors, chunks = case(12)
    for backend in ('matmul', 'cpu'):
        outs = pointwise_conv(*tensors, chunks, backend=backend)
        (grad,) = torch.autograd.grad(outs[0].square().sum(), tensors[:1], create_graph=True)
        if backend == 'matmul':
            grad.sum().backward()
        else:
            with pytest.raises(NotImplementedError, match='use_backend'):
                grad.sum().backward()


@needs_kernels
def test_result_does_not_depend_on_the_number_of_threads():
    before = torch.get_num_threads()
    outs = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            x, weight, bias = torch.randn(2, 30, 70, 41), torch.randn(8, 30), torch.randn(8)
            outs.append(pointwise_conv(x, weight, bias, 2, backend='cpu'))
    finally:
        torch.set_num_threads(before)
    for other in outs[1:]:
        assert all(map(torch.equal, outs[0], other))


@needs_kernels
def test_half_precision_is_left_to_torch():
    tensors = [t.bfloat16() for t in case(12)[0]]
    assert pointwise_conv(*tensors)[0].dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match=r'all be float32 or all float64, got torch.bfloat16'):
        pointwise_conv(*tensors, backend='cpu')


def test_autocast():
    tensors = [t.float() for t in case(12)[0]]
    with torch.autocast('cpu', torch.bfloat16):
        assert pointwise_conv(*tensors)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (dict(x=torch.zeros(3, 4, 5)), r'a non-empty \(B, C_in, H, W\), got \(3, 4, 5\)'),
        (dict(x=torch.zeros(1, 0, 4, 5), weight=torch.zeros(6, 0)), 'x must be a non-empty'),
        (dict(weight=torch.zeros(0, 3), bias=torch.zeros(0)), r'C_out a multiple .* got \(0, 3\)'),
        (dict(weight=torch.zeros(6, 4)), r'weight must be \(C_out, 3\)'),
        (dict(chunks=4), 'a multiple of chunks=4'),
        (dict(chunks=0), 'chunks must be a positive integer, got 0'),
        (dict(bias=torch.zeros(5)), r'bias must have shape \(6,\), got \(5,\)'),
    ],
)
def test_refuses(change, says):
    good = dict(x=torch.zeros(1, 3, 4, 5), weight=torch.zeros(6, 3), bias=torch.zeros(6), chunks=2)
    with pytest.raises(ValueError, match=says):
        pointwise_conv(**(good | change))
