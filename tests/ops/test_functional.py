"""Every backend against the definition, over seeded random shapes."""

import os
import random
from functools import partial

import numpy as np
import pytest
import torch
from convolution_path import FROM_MAPS, project_and_convolve
from fresh_process import run_python
from torch import Tensor
from versions import needs_half_on_cpu

from acmix_mm.ops import Projection, available_backends, neighborhood_attention, shift_conv

# Shapes of the arguments of `project_and_convolve`.
PROJECTED = [(1, 5, 5, 4), (6, 5), (6,), (1, 9, 3), (1, 9), (1, 4, 9, 3, 3)]
CASES = int(os.environ.get('ACMIX_SWEEP', 24))
# Triton's interpreter is too slow for a sweep: see backends/test_triton.py.
ATTENTION_BACKENDS = [
    b for b in available_backends('neighborhood_attention') if b not in ('reference', 'triton')
]


def attention_case(seed: int) -> tuple[list[Tensor], dict]:
    """Random q, k, v and geometry; maps smaller than the window and one-pixel sides included."""
    rng = random.Random(seed)
    geometry = dict(
        kernel_size=rng.choice([1, 3, 5, 7, 9]),
        stride=rng.choice([1, 1, 2, 3]),
        dilation=rng.choice([1, 1, 2, 3]),
    )
    # 70 rows are more than the compiled kernels take at a time.
    height, width = rng.choice([1, 2, 5, 8, 9, 17, 70]), rng.choice([1, 3, 7, 8, 16, 21])
    shape = (rng.choice([0, 1, 2]), rng.choice([1, 3]), rng.choice([1, 4, 5]))
    torch.manual_seed(seed)
    k, v = torch.randn(2, *shape, height, width, dtype=torch.float64)
    stride = geometry['stride']
    q = torch.randn(*shape, -(-height // stride), -(-width // stride), dtype=torch.float64)
    return [q, k, v], geometry


def conv_case(seed: int) -> tuple[list[Tensor | None], dict]:
    rng = random.Random(seed)
    size, pairs, maps = rng.choice([1, 3, 5]), rng.choice([1, 2]), rng.choice([3, 12])
    # Of 8 channels next to each other, the compiled kernels compute all at once.
    groups, innermost = rng.choice([(4, False), (4, True), (8, False), (8, True), (16, True)])
    channels = groups * rng.choice([1, 3, 6])
    torch.manual_seed(seed)
    new = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    x = new(rng.choice([0, 1, 2]), maps, groups, rng.choice([1, 2, 9, 70]), rng.choice([1, 5, 8]))
    if innermost:
        x = x.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
    bias = new(pairs, size**2) if rng.random() < 0.5 else None
    tensors = [
        x,
        new(pairs, size**2, maps),
        bias,
        new(pairs, channels, size**2, size, size),
    ]
    return tensors, dict(stride=rng.choice([1, 2, 3]), dilation=rng.choice([1, 2]))


def results(op, tensors, geometry, backend) -> list[Tensor]:
    """The output and the gradient of every tensor, for a fixed random loss."""
    leaves = [None if t is None else t.clone().requires_grad_() for t in tensors]
    out = op(*leaves, **geometry, backend=backend)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out.shape, dtype=torch.float64, generator=generator).to(out.dtype)
    (out * weight).sum().backward()
    return [out, *(leaf.grad for leaf in leaves if leaf is not None)]


def assert_same(op, tensors, geometry, backend, rtol=1e-10):
    ours = results(op, tensors, geometry, backend)
    definition = results(
        op, [t if t is None else t.double() for t in tensors], geometry, 'reference'
    )
    for mine, expected in zip(ours, definition, strict=True):
        scale = expected.abs().max().item() if expected.numel() else 1.0
        torch.testing.assert_close(mine.double(), expected, rtol=0, atol=rtol * max(scale, 1e-3))


@pytest.mark.parametrize('backend', ATTENTION_BACKENDS)
@pytest.mark.parametrize('seed', range(CASES))
def test_attention_backend_equals_reference(backend, seed):
    tensors, geometry = attention_case(seed)
    assert_same(neighborhood_attention, tensors, geometry, backend)


@pytest.mark.parametrize('backend', [b for b in FROM_MAPS if b != 'reference'])
@pytest.mark.parametrize('seed', range(CASES))
def test_conv_backend_equals_reference(backend, seed):
    tensors, geometry = conv_case(seed)
    assert_same(shift_conv, tensors, geometry, backend)


@pytest.mark.parametrize('backend', available_backends('shift_conv'))
@pytest.mark.parametrize('seed', range(CASES))
def test_conv_of_a_projection_equals_that_of_its_maps(backend, seed):
    (maps, *weights), geometry = conv_case(seed)
    batch_size, num_maps, channels, *size = maps.shape
    rng = random.Random(seed)
    x = torch.randn(batch_size, rng.choice([1, 5]), *size, dtype=torch.float64)
    if rng.random() < 0.5:
        x = x.to(memory_format=torch.channels_last)
    project = torch.randn(num_maps * channels, x.shape[1], dtype=torch.float64)
    bias = torch.randn(len(project), dtype=torch.float64) if rng.random() < 0.7 else None
    # The definition is given all maps.
    given = rng.choice([1, num_maps])
    ours, definition = (
        results(
            partial(project_and_convolve, given=known), [x, project, bias, *weights], geometry, b
        )
        for b, known in ((backend, given), ('reference', num_maps))
    )
    for mine, expected in zip(ours, definition, strict=True):
        scale = expected.abs().max().item() if expected.numel() else 1.0
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-10 * max(scale, 1e-3))


@pytest.mark.parametrize('backend', FROM_MAPS)
def test_maps_may_come_in_several_tensors(backend):
    tensors, geometry = conv_case(0)
    x, *weights = torch.randn(2, 12, 4, 9, 5, dtype=torch.float64), *tensors[1:]
    weights[0] = torch.randn(len(weights[0]), weights[0].shape[1], 12, dtype=torch.float64)
    parts = [x[:, :2], x[:, 2:3], x[:, 3:].transpose(3, 4).contiguous().transpose(3, 4)]
    leaves = [part.clone().requires_grad_() for part in parts]
    whole = x.clone().requires_grad_()
    outs = [shift_conv(maps, *weights, **geometry, backend=backend) for maps in (leaves, whole)]
    torch.testing.assert_close(*outs)
    for out in outs:
        out.square().sum().backward()
    torch.testing.assert_close(torch.cat([leaf.grad for leaf in leaves], 1), whole.grad)


@pytest.mark.parametrize(
    ('dtype', 'rtol'),
    [
        (torch.float32, 1e-5),
        (torch.bfloat16, 2e-2),
        pytest.param(torch.float16, 4e-3, marks=needs_half_on_cpu),
    ],
)
@pytest.mark.parametrize('backend', ATTENTION_BACKENDS)
def test_attention_precision(backend, dtype, rtol):
    tensors = [t.to(dtype) for t in torch.randn(3, 2, 4, 16, 13, 18).unbind()]
    assert_same(neighborhood_attention, tensors, dict(kernel_size=7), backend, rtol)


def test_definition_by_hand():
    """One head, one channel, 3x3 on a 2x2 map: softmax over the reflected neighbors."""
    q = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 1, 2, 2)
    k, v = q / 2, -q
    out = neighborhood_attention(q, k, v, 3, scale=0.5, backend='reference')
    # Around pixel (0, 0), rows and columns are reflected to 1, 0, 1.
    neighbors = torch.tensor([4.0, 3, 4, 2, 1, 2, 4, 3, 4])
    weights = (0.5 * 1.0 * neighbors / 2).softmax(0)
    torch.testing.assert_close(out[0, 0, 0, 0, 0], -(weights * neighbors).sum())


def test_shift_conv_starts_as_shifts_by_hand():
    """With one map and unit mixing weights, one-hot kernels sum the 3x3 neighborhood."""
    x = torch.arange(1.0, 7.0).view(1, 1, 1, 2, 3)
    kernel = torch.eye(9).view(1, 1, 9, 3, 3)
    out = shift_conv(x, torch.ones(1, 9, 1), None, kernel)
    assert out.flatten().tolist() == [12, 21, 16, 12, 21, 16]


def test_reference_gradcheck():
    tensors = [t.requires_grad_() for t in torch.randn(3, 1, 2, 2, 3, 4, dtype=torch.float64)]
    assert torch.autograd.gradcheck(
        lambda *t: neighborhood_attention(*t, 3, dilation=2, backend='reference'), tensors
    )


def test_large_logits_do_not_overflow():
    q = torch.full((1, 1, 4, 9, 9), 100.0)
    k = torch.randn(1, 1, 4, 9, 9) * 100
    for backend in (*ATTENTION_BACKENDS, 'reference'):
        assert neighborhood_attention(q, k, k, 7, backend=backend).isfinite().all()


def test_result_does_not_depend_on_layout():
    q, k, v = torch.randn(3, 2, 4, 8, 10, 9).unbind()
    expected = neighborhood_attention(q, k, v, 7)
    last = [t.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2) for t in (q, k, v)]
    torch.testing.assert_close(neighborhood_attention(*last, 7), expected)


@pytest.mark.parametrize(
    ('change', 'error', 'says'),
    [
        (dict(kernel_size=4), ValueError, 'kernel_size must be a positive odd integer, got 4'),
        (dict(stride=0), ValueError, 'stride must be a positive integer, got 0'),
        (dict(dilation=-1), ValueError, 'dilation must be a positive integer, got -1'),
        (dict(q=torch.zeros(1, 2, 4, 3, 3)), ValueError, r'q must have shape \(1, 2, 4, 5, 6\)'),
        (dict(v=torch.zeros(1, 2, 4, 5, 5)), ValueError, 'v must have the shape of k'),
        (dict(k=torch.zeros(2, 4, 5, 6)), ValueError, 'k must be a non-empty'),
        (dict(v=torch.zeros(1, 2, 4, 5, 6).double()), TypeError, 'same dtype'),
        (dict(v=torch.zeros(1, 2, 4, 5, 6, device='meta')), TypeError, 'same device'),
        (dict(q=torch.zeros(1, 2, 4, 5, 6, dtype=torch.int32)), TypeError, 'floating-point'),
        (dict(backend='cuda9000'), ValueError, "no backend 'cuda9000'; choose one of"),
    ],
)
def test_attention_refuses(change, error, says):
    good = dict(zip('qkv', torch.zeros(3, 1, 2, 4, 5, 6), strict=True), kernel_size=3)
    with pytest.raises(error, match=says):
        neighborhood_attention(**(good | change))


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (dict(maps=torch.zeros(1, 3, 4, 5)), 'maps must be a non-empty'),
        (dict(maps=[]), r'maps must be a non-empty \(B, M, G, H, W\), got none'),
        (dict(maps=torch.zeros(2, 1, 1, 4, 5, 5).unbind()), r'weight must have shape \(1, 9, 2\)'),
        (dict(maps=(torch.zeros(1, 2, 4, 5, 5), torch.zeros(1, 1, 4, 5, 6))), 'differ in M only'),
        (dict(fc_weight=torch.zeros(1, 9, 4)), r'fc_weight must have shape \(1, 9, 3\)'),
        (dict(fc_bias=torch.zeros(1, 8)), r'fc_bias must have shape \(1, 9\)'),
        (dict(kernel=torch.zeros(1, 5, 9, 3, 3)), 'divisible by the 4 channels'),
        (dict(kernel=torch.zeros(1, 4, 4, 2, 2)), 'kernel_side must be a positive odd'),
        (dict(stride=1.5), 'stride must be a positive integer, got 1.5'),
        (
            dict(projection=Projection(torch.zeros(1, 6, 5, 4), torch.zeros(12, 6), None)),
            r'projection.x must be \(B, C_in, H, W\) with B, H and W of the maps, \(1, 5, 5\)',
        ),
        (
            dict(projection=Projection(torch.zeros(1, 6, 5, 5), torch.zeros(12, 5), None)),
            r'projection.weight must be \(M \* 4, 6\)',
        ),
        (
            dict(projection=Projection(torch.zeros(1, 6, 5, 5), torch.zeros(8, 6), None)),
            'at least the 3 maps that are given',
        ),
        (
            dict(projection=Projection(torch.zeros(1, 6, 5, 5), torch.zeros(16, 6), None)),
            r'fc_weight must have shape \(1, 9, 4\) for 4 maps',
        ),
        (
            dict(
                projection=Projection(torch.zeros(1, 6, 5, 5), torch.zeros(12, 6), torch.zeros(6))
            ),
            r'projection.bias must have shape \(12,\), got \(6,\)',
        ),
    ],
)
def test_shift_conv_refuses(change, says):
    good = dict(
        maps=torch.zeros(1, 3, 4, 5, 5),
        fc_weight=torch.zeros(1, 9, 3),
        fc_bias=None,
        kernel=torch.zeros(1, 4, 9, 3, 3),
    )
    with pytest.raises(ValueError, match=says):
        shift_conv(**(good | change))


def test_dense_backend_needs_the_projection():
    tensors, geometry = conv_case(0)
    with pytest.raises(RuntimeError, match="'dense' cannot run: it needs the projection that"):
        shift_conv(*tensors, **geometry, backend='dense')


@pytest.mark.parametrize('backend', available_backends('shift_conv'))
def test_weights_are_at_least_as_precise_as_the_maps(backend):
    tensors = [torch.randn(shape) for shape in PROJECTED]
    for i in (1, 3, 5):
        mixed = [t.half() if j == i else t for j, t in enumerate(tensors)]
        with pytest.raises(TypeError, match='must have the same dtype'):
            _from_projection(mixed, backend)
    with pytest.raises(TypeError, match='of the maps or a more precise one, got'):
        _from_projection([tensors[0].double(), *tensors[1:]], backend)
    # More precise weights are multiplied in their own precision.
    out = _from_projection([tensors[0].bfloat16(), *tensors[1:]], backend)
    assert out.dtype == torch.bfloat16


def _from_projection(tensors: list[Tensor], backend: str) -> Tensor:
    x, weight, bias, *weights = tensors
    maps = torch.zeros(1, 1, 2, 5, 4, dtype=x.dtype)
    projection = Projection(x, weight, bias)
    return shift_conv(maps, *weights, backend=backend, projection=projection)


@pytest.mark.parametrize(
    ('module', 'backend', 'says'),
    [
        ('acmix_mm.ops._C', 'cpu', '--no-build-isolation'),
        ('triton', 'triton', 'triton cannot be imported'),
    ],
)
def test_works_without_optional_backends(module, backend, says):
    code = f"""
import sys
sys.modules[{module!r}] = None
import pytest, torch
from acmix_mm.ops import available_backends, neighborhood_attention
q, k, v = torch.randn(3, 1, 2, 4, 5, 6).unbind()
assert {backend!r} not in available_backends('neighborhood_attention')
assert neighborhood_attention(q, k, v, 3).shape == q.shape
with pytest.raises(RuntimeError, match="backend '{backend}' cannot run: .*{says}"):
    neighborhood_attention(q, k, v, 3, backend={backend!r})
"""
    run_python(code)


@pytest.mark.parametrize('value', [True, 3.0, '3', None])
def test_sizes_must_be_integers(value):
    q, k, v = torch.zeros(3, 1, 2, 4, 5, 6).unbind()
    with pytest.raises((ValueError, TypeError), match='kernel_size must be a positive odd integer'):
        neighborhood_attention(q, k, v, value)


def test_sizes_may_be_integers_of_numpy():
    q, k, v = torch.randn(3, 1, 2, 4, 5, 6).unbind()
    expected = neighborhood_attention(q, k, v, 3, dilation=2)
    out = neighborhood_attention(q, k, v, np.int64(3), dilation=np.int32(2))
    torch.testing.assert_close(out, expected)
