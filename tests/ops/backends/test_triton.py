"""The Triton kernels, on a GPU if there is one, or else in Triton's interpreter, which is slow."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from fresh_process import run_python
from torch import Tensor
from triton_interpreter import repair_bfloat16

from acmix_mm.ops import available_backends, neighborhood_attention
from acmix_mm.ops.backends import triton

needs_triton = pytest.mark.skipif(triton.missing() is not None, reason=str(triton.missing()))
if triton.missing() is None:
    from acmix_mm.ops.backends import triton_kernels
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
WINDOW = (3, 1, 1, 0.7)


def inputs(size, *, stride=1, depth=3, images=(1, 1), dtype=torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    queries = [-(-side // stride) for side in size]
    shapes = [(*images, depth, *queries), *[(*images, depth, *size)] * 2]
    tensors = [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]
    return [tensor.to(DEVICE).requires_grad_() for tensor in tensors]


def results(operator, tensors, *window) -> list[Tensor]:
    """The output, and the gradients for a loss that weighs every element of it differently."""
    out = operator(*tensors, *window)
    weight = torch.linspace(-1, 1, out.numel(), device=DEVICE).sin().view(out.shape).to(out)
    return [out, *torch.autograd.grad(out, tensors, weight)]


attend = partial(neighborhood_attention, backend='triton')
reference = partial(neighborhood_attention, backend='reference')


def assert_equals_reference(tensors, *window, operator=attend, rtol=1e-10):
    ours = results(operator, tensors, *window)
    definition = results(
        reference, [t.detach().double().requires_grad_() for t in tensors], *window
    )
    for mine, expected, like in zip(ours, definition, (tensors[0], *tensors), strict=True):
        assert mine.dtype == like.dtype
        atol = rtol * expected.abs().max().clamp(min=1e-3).item() if expected.numel() else 0
        torch.testing.assert_close(mine.double(), expected, rtol=0, atol=atol)


@needs_triton
@pytest.mark.parametrize(
    ('size', 'window'),
    [
        ((9, 10), (7, 1, 1)),  # several tiles
        ((4, 5), (1, 1, 1)),
        ((1, 1), (3, 1, 1)),
        ((1, 3), (7, 1, 1)),  # reflected more than once
        ((5, 2), (3, 1, 2)),
        ((9, 4), (3, 2, 1)),
        ((1, 11), (3, 2, 3)),
        ((9, 1), (3, 2, 4)),  # stride and dilation have a common divisor: keys nobody sees
        ((5, 5), (9, 1, 1)),  # a halo of two blocks
        ((3, 11), (3, 5, 1)),  # a halo of four blocks, windows apart
    ],
)
def test_equals_reference(size, window):
    assert_equals_reference(inputs(size, stride=window[1]), *window)


@needs_triton
def test_empty_batch():
    assert_equals_reference(inputs((2, 3), images=(0, 2)), *WINDOW)


@needs_triton
@pytest.mark.parametrize(
    ('depth', 'size', 'kernel_size'),
    [(1, (3, 2), 3), (64, (3, 2), 1), (128, (2, 2), 1), (20, (5, 5), 5)],
    ids=['less than a slice', '4 slices', '8 slices', 'slices and blocks'],
)
def test_channels(depth, size, kernel_size):
    assert_equals_reference(inputs(size, depth=depth), kernel_size, 1, 1, 0.7)


@needs_triton
@pytest.mark.parametrize('scale', [-0.3, 0.0, 1 / 3])
def test_scale(scale):
    """Any, and in double precision: Triton passes numbers in single precision by default."""
    assert_equals_reference(inputs((3, 4)), 3, 1, 1, scale)


@needs_triton
@pytest.mark.parametrize(('dtype', 'rtol'), [(torch.float32, 1e-5), (torch.float16, 4e-3)])
def test_precision(dtype, rtol):
    assert_equals_reference(inputs((5, 6), depth=8, dtype=dtype), *WINDOW, rtol=rtol)


@needs_triton
def test_bfloat16(monkeypatch):
    if triton_kernels.INTERPRETED:
        repair_bfloat16(monkeypatch)
    tensors = inputs((5, 6), depth=8, dtype=torch.bfloat16)
    operator = triton_kernels.neighborhood_attention
    assert_equals_reference(tensors, *WINDOW, operator=operator, rtol=2e-2)


@needs_triton
@pytest.mark.parametrize(
    ('innermost', 'layout'),
    [('columns', 0), ('channels', 2), ('few channels', 1), ('rows', -1)],
)
def test_views(innermost, layout):
    """q, k and v as they come from one projection, whichever axis is adjacent in memory."""
    depth = 3 if innermost == 'few channels' else 4
    qkv = torch.randn(2, 3, 2, depth, 4, 3, dtype=torch.float64, device=DEVICE)
    order = {'columns': range(6), 'rows': (0, 1, 2, 3, 5, 4)}.get(innermost, (0, 4, 5, 1, 2, 3))
    inverse = [list(order).index(axis) for axis in range(6)]
    maps = qkv.permute(*order).contiguous().permute(*inverse).unbind(1)
    assert {triton_kernels._layout(x) for x in maps} == {layout}
    assert_equals_reference([x.requires_grad_() for x in maps], *WINDOW)


@needs_triton
def test_copies_many_channels_to_channels_last(monkeypatch):
    layouts = []
    launch = triton_kernels.launch

    def record(kernel, images, *others, **constants):
        layouts.extend(triton_kernels._layout(x) for x in images if x is not None)
        launch(kernel, images, *others, **constants)

    monkeypatch.setattr(triton_kernels, 'launch', record)
    assert_equals_reference(inputs((2, 3), depth=33), 1, 1, 1, 0.7)
    assert len(layouts) == 4 + 6 + 6
    assert set(layouts) == {1}


@needs_triton
def test_views_of_every_other_pixel():
    """Queries of a layer with a stride, and a gradient that is one number in all pixels."""
    q, k, v = inputs((5, 6))
    tensors = [q[..., ::2, ::2], k, v]
    window = (3, 2, 1, 0.7)
    out = attend(*tensors, *window)
    assert triton_kernels._layout(tensors[0]) == -1
    torch.testing.assert_close(out, reference(*tensors, *window))
    grads, expected = (
        torch.autograd.grad(operator(*tensors, *window).sum(), (q, k, v))
        for operator in (attend, reference)
    )
    torch.testing.assert_close(grads, expected)


@needs_triton
def test_offsets_beyond_2_31():
    q, k, _ = inputs((2, 3))
    wide = torch.empty(1, device='meta').as_strided((1, 1, 3, 2, 3), (0, 0, 2**30, 3, 1))
    assert triton_kernels._offset_type(q, k) == triton_kernels.tl.int32
    assert triton_kernels._offset_type(q, wide) == triton_kernels.tl.int64
    strided = torch.empty_strided(k.shape, (9, 9, 2**31, 3, 1), device='meta')
    assert triton_kernels._stride_codes(strided)[2] == 2**32 + 3


@needs_triton
@pytest.mark.parametrize(
    ('dtype', 'allowed', 'expected'),
    [
        (torch.float32, False, 'tf32x3'),
        (torch.float32, True, 'tf32'),
        (torch.float64, True, 'ieee'),
        (torch.float16, True, 'ieee'),
    ],
)
def test_follows_the_flag_of_matrix_products(dtype, allowed, expected):
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, allowed
    try:
        assert triton_kernels._precision(dtype) == expected
    finally:
        matmul.allow_tf32 = before


@needs_triton
def test_large_logits_do_not_overflow():
    q, k, v = (1000 * t.detach() for t in inputs((3, 4), dtype=torch.float32))
    out = attend(q, k, v, *WINDOW)
    torch.testing.assert_close(out, reference(q, k, v, *WINDOW))


@needs_triton
def test_registration():
    window = (1, 1, 1, 0.7)
    tensors = inputs((2, 3))
    torch.library.opcheck(triton_kernels._attend, (*tensors, *window))
    out, lse = triton_kernels._attend(*tensors, *window)
    arguments = [t.detach() for t in (torch.ones_like(out), *tensors, out, lse)]
    torch.library.opcheck(
        triton_kernels._differentiate,
        (*arguments, *window),
        test_utils=['test_schema', 'test_faketensor'],
    )


@needs_triton
def test_compiles_without_graph_breaks():
    tensors = inputs((2, 3))
    compiled = torch.compile(neighborhood_attention, fullgraph=True, backend='aot_eager')
    out = compiled(*tensors, *WINDOW, backend='triton')
    torch.testing.assert_close(out, reference(*tensors, *WINDOW))


@needs_triton
def test_cannot_be_differentiated_twice():
    tensors = inputs((2, 3))
    out = attend(*tensors, *WINDOW)
    (grad,) = torch.autograd.grad(out.sum(), tensors[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match='second derivatives'):
        grad.square().sum().backward()


@needs_triton
def test_comes_before_the_backend_of_matrix_products():
    backends = available_backends('neighborhood_attention')
    assert backends.index('triton') < backends.index('tiled')


@needs_triton
@pytest.mark.skipif(DEVICE == 'cuda', reason='the kernels are compiled anyway')
def test_compiles_for_gpus(tmp_path):
    """The real compiler takes what the interpreter takes, down to machine code for tensor cores."""
    code = """
import torch, triton
from triton.backends.compiler import GPUTarget
from acmix_mm.ops.backends import triton_kernels

class Driver:  # of a GPU that is not there
    get_current_target = lambda self: GPUTarget('cuda', 80, 32)
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0

triton.runtime.driver.set_active(Driver())
run, kernels = triton.JITFunction.run, []
triton.JITFunction.run = lambda self, *args, warmup, **constants: kernels.append(
    run(self, *args, warmup=True, **constants)
)
q, k, v = torch.zeros(3, 2, 4, 16, 20, 30).unbind()
out, lse = triton_kernels._attend(q, k, v, 7, 1, 1, 0.5)
triton_kernels._differentiate(out, q, k, v, out, lse, 7, 1, 1, 0.5)
assert len(kernels) == 3
for kernel in kernels:
    assert 'mma.sync' in kernel.asm['ptx'] and kernel.asm['cubin']
    assert kernel.metadata.shared < 99 * 1024, kernel.metadata.shared  # of every GPU it may run on
"""
    run_python(code, TRITON_INTERPRET='0', TRITON_CACHE_DIR=str(tmp_path))


@pytest.mark.parametrize(
    ('dtype', 'says'),
    [
        (torch.float32, 'the tensors must be on an NVIDIA GPU, got cpu'),
        (torch.float8_e4m3fn, 'the dtype must be one of .*, got torch.float8_e4m3fn'),
        (torch.bfloat16, "Triton's interpreter multiplies bfloat16 wrongly"),
    ],
)
def test_says_why_it_cannot_run(monkeypatch, dtype, says):
    monkeypatch.setattr(triton, 'missing', lambda: None)
    kernels = SimpleNamespace(INTERPRETED=dtype == torch.bfloat16)
    monkeypatch.setattr(triton, '_kernels', lambda: kernels)
    tensors = [torch.zeros(1, 1, 1, 1, 1, dtype=dtype)] * 3
    with pytest.raises(RuntimeError, match=f"backend 'triton' cannot run: {says}"):
        neighborhood_attention(*tensors, 3, backend='triton')
