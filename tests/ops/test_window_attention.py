"""Attention in windows: every backend against the definition, and the C++ operator in torch."""

import random
from collections.abc import Callable

import pytest
import torch
from fresh_process import run_python
from torch import Tensor
from versions import needs_opcheck

from acmix_mm.ops import available_backends, window_attention
from acmix_mm.ops.backends import cpu

needs_kernels = pytest.mark.skipif(cpu.MISSING is not None, reason='built without the kernels')
BACKENDS = [name for name in available_backends('window_attention') if name != 'reference']
INFINITY = float('inf')


def masks(side: int, counts: tuple[int, int], dtype=torch.float64) -> tuple[Tensor, ...]:
    """Masks of some last windows along each axis; every pixel sees itself."""
    generator = torch.Generator().manual_seed(1)
    apart = (torch.rand(count, side, side, generator=generator) < 0.3 for count in counts)
    return tuple(
        torch.zeros(mask.shape, dtype=dtype).masked_fill(mask & ~torch.eye(side).bool(), -INFINITY)
        for mask in apart
    )


def tensors(
    side=2, grid=(2, 3), batch=1, heads=2, channels=2, dtype=torch.float64
) -> tuple[Tensor, Tensor]:
    """Queries, keys and values, and the bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, side * grid[0], side * grid[1], 3, heads, channels), (heads, side**2, side**2)
    qkv, bias = (torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes)
    return qkv.requires_grad_(), bias.requires_grad_()


def results(call: Callable[..., Tensor], *leaves: Tensor) -> list[Tensor]:
    """The output and all gradients, for a fixed loss."""
    out = call(*leaves)
    weight = torch.arange(out.numel(), dtype=out.dtype).sin().view(out.shape)
    return [out, *torch.autograd.grad((out * weight).sum(), leaves)]


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('seed', range(24))
def test_backend_equals_reference(backend, seed):
    rng = random.Random(seed)
    side, grid = rng.choice([1, 2, 3, 7, 7, 12]), (rng.choice([1, 2, 5]), rng.choice([1, 3, 4]))
    sizes = dict(batch=rng.choice([0, 1, 2]), heads=rng.choice([1, 3]))
    leaves = tensors(side, grid, channels=rng.choice([1, 3, 8, 32, 33]), **sizes)
    counts = tuple(rng.randint(1, count) for count in grid)
    given = masks(side, counts) if rng.random() < 0.7 else None
    scale = rng.choice([None, 0.5])
    ours, expected = (
        results(lambda *t, name=name: window_attention(*t, side, given, scale, 0.0, name), *leaves)
        for name in (backend, 'reference')
    )
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('backend', BACKENDS)
def test_masks_of_the_last_windows(backend):
    """Masks of 0 in front of them change nothing."""
    leaves, side, grid = tensors(3, (4, 5)), 3, (4, 5)
    few = masks(side, (1, 2))
    all_ = tuple(
        torch.cat([torch.zeros(count - len(mask), side, side, dtype=mask.dtype), mask])
        for count, mask in zip(grid, few, strict=True)
    )
    outs = [window_attention(*leaves, side, given, backend=backend) for given in (few, all_, None)]
    torch.testing.assert_close(outs[0], outs[1])
    same = torch.isclose(outs[0], outs[2]).all(-1).all(-1)[0]
    assert same[:9, :9].all()
    assert not same[9:].all()
    assert not same[:, 9:].all()


def test_dropout():
    qkv, bias = tensors(7, channels=4)
    plain, dropped = (window_attention(qkv, bias, 7, dropout_p=p) for p in (0.0, 0.5))
    assert not torch.allclose(plain, dropped)
    for backend in ('sdpa', 'reference'):
        out = window_attention(qkv, bias, 7, dropout_p=1 - 1e-9, backend=backend)
        assert (out == 0).float().mean() > 0.9


@needs_kernels
@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (dict(dropout_p=0.1), 'it has no dropout of attention weights'),
        (dict(qkv=torch.zeros(1, 4, 4, 3, 1, 2).bfloat16()), 'must all be float32 or all float64'),
        (dict(masks=tuple(torch.zeros(2, 1, 2, 2).requires_grad_())), 'no gradients of masks'),
    ],
)
def test_kernels_are_left_out_for_what_they_cannot_do(change, says):
    arguments = (
        dict(qkv=torch.zeros(1, 4, 4, 3, 1, 2), bias=torch.zeros(1, 4, 4), window_size=2) | change
    )
    arguments['bias'] = arguments['bias'].to(arguments['qkv'].dtype)
    with pytest.raises(RuntimeError, match=f"window_attention: backend 'cpu' cannot run: .*{says}"):
        window_attention(**arguments, backend='cpu')
    assert window_attention(**arguments).shape == (1, 4, 4, 1, 2)


@pytest.mark.parametrize(
    ('change', 'error', 'says'),
    [
        (dict(window_size=0), ValueError, 'window_size must be a positive integer, got 0'),
        (dict(qkv=torch.zeros(4, 6, 3, 2, 5)), ValueError, 'qkv must be a non-empty'),
        (dict(qkv=torch.zeros(1, 4, 6, 2, 2, 5)), ValueError, 'qkv must be a non-empty'),
        (dict(qkv=torch.zeros(1, 0, 6, 3, 2, 5)), ValueError, 'qkv must be a non-empty'),
        (dict(qkv=torch.zeros(1, 4, 5, 3, 2, 5)), ValueError, 'multiples of window_size=2, got'),
        (dict(qkv=torch.zeros(1, 4, 6, 3, 2, 5).long()), TypeError, 'must be a floating-point'),
        (dict(bias=torch.zeros(3, 4, 4)), ValueError, r'bias must have shape \(2, 4, 4\), got'),
        (dict(bias=torch.zeros(2, 4, 4).double()), TypeError, 'bias and qkv must have the same d'),
        (
            dict(masks=(torch.zeros(3, 2, 2), torch.zeros(1, 2, 2))),
            ValueError,
            r'row_masks must be \(A, 2, 2\) with A from 1 to the 2 windows along this axis, got',
        ),
        (
            dict(masks=(torch.zeros(1, 2, 2), torch.zeros(1, 2, 3))),
            ValueError,
            r'column_masks must be \(A, 2, 2\) with A from 1 to the 3 windows',
        ),
        (dict(backend='tiled'), ValueError, "no backend 'tiled'; choose one of"),
    ],
)
def test_refuses(change, error, says):
    good = dict(qkv=torch.zeros(1, 4, 6, 3, 2, 5), bias=torch.zeros(2, 4, 4), window_size=2)
    with pytest.raises(error, match=says):
        window_attention(**(good | change))


@needs_kernels
@pytest.mark.parametrize(('side', 'channels'), [(1, 2), (2, 3), (3, 1)])
@pytest.mark.parametrize('masked', [False, True])
def test_gradients_equal_differences(side, channels, masked):
    leaves = tensors(side, (1, 2), heads=1, channels=channels)
    given = masks(side, (1, 1)) if masked else None
    assert torch.autograd.gradcheck(
        lambda *t: window_attention(*t, side, given, backend='cpu'), leaves
    )


@needs_opcheck
@needs_kernels
@pytest.mark.parametrize('masked', [False, True])
def test_registration(masked):
    leaves = tensors(3)
    given = masks(3, (1, 2)) if masked else (None, None)
    forward, backward = (
        getattr(torch.ops.acmix_mm, f'window_attention_{name}').default
        for name in ('forward', 'backward')
    )
    torch.library.opcheck(forward, (*leaves, *given, 3, 0.5))
    out, lse = forward(*leaves, *given, 3, 0.5)
    arguments = [
        t if t is None else t.detach() for t in (torch.ones_like(out), *leaves, *given, lse)
    ]
    torch.library.opcheck(
        backward, (*arguments, 3, 0.5), test_utils=['test_schema', 'test_faketensor']
    )


@needs_kernels
def test_cannot_be_differentiated_twice():
    qkv, bias = tensors()
    out = window_attention(qkv, bias, 2, backend='cpu')
    (grad,) = torch.autograd.grad(out.sum(), bias, create_graph=True)
    with pytest.raises(NotImplementedError, match='second derivatives'):
        grad.square().sum().backward()


@needs_kernels
def test_result_does_not_depend_on_the_number_of_threads():
    before, found = torch.get_num_threads(), []
    leaves = tensors(7, (4, 5), batch=3, channels=32, dtype=torch.float32)
    given = masks(7, (1, 1), torch.float32)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(lambda *t: window_attention(*t, 7, given, backend='cpu'), *leaves))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


@needs_kernels
def test_keeps_no_weights_for_the_backward_pass():
    """What is kept: the arguments and a number for each query and head."""
    qkv, bias = tensors(7, channels=32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: None):
        window_attention(qkv, bias, 7, backend='cpu')
    shapes = {tuple(tensor.shape) for tensor in kept}
    assert shapes == {tuple(qkv.shape), tuple(bias.shape), (6, 2, 49)}


@needs_kernels
@pytest.mark.parametrize('part', range(3), ids='qkv')
def test_nan_stays_nan_in_its_window_and_head(part):
    qkv, bias = tensors(7, channels=5, dtype=torch.float32)
    with torch.no_grad():
        qkv[0, 3, 9, part, 1, 2] = float('nan')
    outs = [window_attention(qkv, bias, 7, backend=name).isnan() for name in ('cpu', 'reference')]
    assert torch.equal(*outs)
    assert outs[0].any()


@needs_kernels
@pytest.mark.parametrize('magnitude', [1e6, 1e37])
@pytest.mark.parametrize('part', range(3), ids='qkv')
def test_large_numbers_do_not_overflow(part, magnitude):
    qkv, bias = (t.detach().clamp(-1, 1) for t in tensors(7, channels=5, dtype=torch.float32))
    qkv[:, :, :, part] *= magnitude
    out = window_attention(qkv, bias, 7, backend='cpu')
    expected = window_attention(qkv.double(), bias.double(), 7, backend='reference')
    torch.testing.assert_close(out.double(), expected, atol=1e-6 * expected.abs().max(), rtol=0)


@needs_kernels
@pytest.mark.parametrize('capability', ['default', 'avx2'])
def test_other_instruction_sets(capability):
    """The kernels for older processors, which torch chooses only once in a process."""
    code = """
import torch
from acmix_mm.ops import window_attention
torch.manual_seed(0)
shapes = (1, 14, 21, 3, 2, 19), (2, 49, 49)
qkv, bias = (torch.randn(shape).requires_grad_() for shape in shapes)
results = []
for backend in ('cpu', 'reference'):
    out = window_attention(qkv, bias, 7, backend=backend)
    results.append([out, *torch.autograd.grad(out.square().sum(), (qkv, bias))])
torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
"""
    run_python(code, ATEN_CPU_CAPABILITY=capability)
