"""The compiled kernels: gradients by hand, and their registration in torch."""

import pytest
import torch
from fresh_process import run_python
from torch import Tensor
from versions import needs_opcheck

from acmix_mm.ops import available_backends, neighborhood_attention, shift_conv
from acmix_mm.ops.backends import cpu

needs_kernels = pytest.mark.skipif(cpu.MISSING is not None, reason='built without the kernels')


def inputs(*, size=(5, 6), stride=1, dtype=torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    queries = [-(-side // stride) for side in size]
    shapes = [(1, 2, 2, *queries), (1, 2, 2, *size), (1, 2, 2, *size)]
    return [
        torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes
    ]


@needs_kernels
@pytest.mark.parametrize(
    ('size', 'window'),
    [
        ((5, 4), (3, 1, 1)),
        ((2, 1), (5, 1, 1)),
        ((5, 4), (3, 2, 1)),
        ((4, 5), (3, 1, 2)),
        ((7, 2), (3, 3, 2)),
    ],
)
def test_gradients_equal_differences(size, window):
    tensors = inputs(size=size, stride=window[1])
    assert torch.autograd.gradcheck(
        lambda *t: neighborhood_attention(*t, *window, backend='cpu'), tensors
    )


def conv_inputs(*, size=(5, 4), kernel_size=3, channels=2, dtype=torch.float64) -> list[Tensor]:
    """Maps, fc_weight, fc_bias and kernel of 3 maps with as many channels to 2 channels each.

    Other than 2 channels are next to each other.
    """
    generator = torch.Generator().manual_seed(0)
    positions = kernel_size**2
    shapes = [
        (1, 3, channels, *size), (1, positions, 3), (1, positions),
        (1, 2 * channels, positions, *[kernel_size] * 2),
    ]  # fmt: skip
    maps, *weights = [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]
    if channels != 2:
        maps = maps.movedim((1, 2), (-2, -1)).contiguous().movedim((-2, -1), (1, 2))
    return [tensor.requires_grad_() for tensor in (maps, *weights)]


@needs_kernels
@pytest.mark.parametrize(
    ('size', 'window'),
    [((5, 4), (3, 1, 1)), ((1, 3), (3, 2, 1)), ((5, 4), (1, 2, 1)), ((4, 5), (3, 3, 2))],
)
@pytest.mark.parametrize('channels', [2, 8])
def test_conv_gradients_equal_differences(size, window, channels):
    kernel_size, *geometry = window
    tensors = conv_inputs(size=size, kernel_size=kernel_size, channels=channels)
    assert torch.autograd.gradcheck(
        lambda *t: shift_conv(*t, *geometry, backend='cpu'), tensors, fast_mode=True
    )


@needs_opcheck
@needs_kernels
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_registration(dtype):
    tensors = inputs(dtype=dtype)
    op = torch.ops.acmix_mm.neighborhood_attention_forward.default
    # Tracing through autograd with 16 significant bits less only measures rounding.
    tests = ['test_schema', 'test_autograd_registration', 'test_faketensor']
    if dtype == torch.float64:
        tests.append('test_aot_dispatch_dynamic')
    torch.library.opcheck(op, (*tensors, 3, 1, 1, 0.5), test_utils=tests)
    out, lse = op(*tensors, 3, 1, 1, 0.5)
    backward = torch.ops.acmix_mm.neighborhood_attention_backward.default
    arguments = [t.detach() for t in (torch.ones_like(out), *tensors, lse)]
    torch.library.opcheck(
        backward, (*arguments, 3, 1, 1, 0.5), test_utils=['test_schema', 'test_faketensor']
    )


@needs_opcheck
@needs_kernels
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('channels', [2, 8, 16])
@pytest.mark.parametrize('stride', [1, 2])
def test_conv_registration(stride, channels, dtype):
    """The strides of the results, too, which depend on the number of channels and the dtype."""
    maps = torch.randn(2, 5, 4, 3, channels, dtype=dtype).permute(0, 3, 4, 1, 2).requires_grad_()
    weight = torch.randn(2 * channels, 6, 3, 3, dtype=dtype)
    arguments = ([maps, maps.detach().clone()], weight.requires_grad_(), stride, 1)
    # As above, without tracing through autograd in half precision.
    tests = ['test_schema', 'test_autograd_registration', 'test_faketensor']
    if dtype != torch.bfloat16:
        tests.append('test_aot_dispatch_dynamic')
    op = torch.ops.acmix_mm.shift_conv_forward.default
    torch.library.opcheck(op, arguments, test_utils=tests)
    out = op(*arguments)
    torch.library.opcheck(
        torch.ops.acmix_mm.shift_conv_backward.default,
        (torch.ones_like(out), [maps.detach()] * 2, weight.detach(), stride, 1),
        test_utils=['test_schema', 'test_faketensor'],
    )


@needs_kernels
@pytest.mark.parametrize('channels', [2, 16])
def test_conv_in_half_precision(channels):
    tensors = conv_inputs(channels=channels, dtype=torch.bfloat16)
    out = shift_conv(*tensors, backend='cpu')
    expected = shift_conv(*(t.double() for t in tensors), backend='reference')
    assert out.dtype == torch.bfloat16
    error = (out.double() - expected).abs().max() / expected.abs().max()
    assert error < 8e-3


@needs_kernels
@pytest.mark.parametrize('channels', [2, 32])
def test_result_does_not_depend_on_the_number_of_threads(channels):
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            tensors = inputs(size=(70, 40), dtype=torch.float32)
            conv_tensors = conv_inputs(size=(70, 40), channels=channels, dtype=torch.float32)
            outs = [
                neighborhood_attention(*tensors, 7, backend='cpu'),
                shift_conv(*conv_tensors, backend='cpu'),
            ]
            sum(out.square().sum() for out in outs).backward()
            results.append([*outs, *(t.grad for t in tensors + conv_tensors)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            assert torch.equal(ours, theirs)


@needs_kernels
def test_cannot_be_differentiated_twice():
    tensors = inputs()
    out = neighborhood_attention(*tensors, 3, backend='cpu')
    (grad,) = torch.autograd.grad(out.sum(), tensors[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match='second derivatives'):
        grad.square().sum().backward()


@needs_kernels
@pytest.mark.parametrize('bits', [0x7FC00000, 0x7FC00001, 0x7F800001, 0x7FC00155, 0x7FFFFFFF, -1])
@pytest.mark.parametrize('which', range(3), ids='qkv')
def test_nan_stays_nan(which, bits):
    tensors = inputs(dtype=torch.float32)
    with torch.no_grad():
        tensors[which][0, 0, 0, 2, 2] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    out = neighborhood_attention(*tensors, 3, backend='cpu')
    expected = neighborhood_attention(*tensors, 3, backend='reference')
    assert torch.equal(out.isnan(), expected.isnan())
    assert out.isnan().any()


@needs_kernels
@pytest.mark.parametrize('channels', [2, 32])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_conv_keeps_what_is_not_finite_to_its_channel_and_neighbors(value, channels):
    tensors = conv_inputs(size=(6, 9), channels=channels, dtype=torch.float32)
    with torch.no_grad():
        tensors[0][0, 1, 1, 3, 4] = value
    out = shift_conv(*tensors, backend='cpu')
    assert not out[0, 2:4, 2:5, 3:6].isfinite().any()
    assert (~out.isfinite()).sum() == 2 * 9
    out.sum().backward()
    maps, fc_weight, _, kernel = tensors
    assert maps.grad.isfinite().all()
    assert not fc_weight.grad.isfinite().all()
    assert not kernel.grad.isfinite().all()


@needs_kernels
@pytest.mark.parametrize('bits', [None, 0x7FC00000, 0x7FFFFFFF, -1])
def test_what_the_backward_pass_needs_is_as_exact_as_its_dtype(bits):
    def lse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        forward = torch.ops.acmix_mm.neighborhood_attention_forward
        return forward(q, k, v, 7, 1, 1, 1.0)[1]

    q, k, v = (tensor.detach() for tensor in inputs(size=(64, 70), dtype=torch.float32))
    if bits is not None:
        k[0, 0, 0, 20, 30] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    expected = lse(q.double(), k.double(), v.double())
    # The sums of the weights, of which a logarithm is taken, are any numbers down to 1 / 64.
    bound = dict(atol=2.5e-7, rtol=2.5e-7, equal_nan=True)
    torch.testing.assert_close(lse(q, k, v).double(), expected, **bound)
    assert expected.isnan().any() == (bits is not None)


@needs_kernels
@pytest.mark.parametrize(
    ('which', 'magnitude'), [(0, 1e6), (0, 1e37), (1, 1e6), (1, 1e37), (2, 1e6), (2, 2e38)]
)
def test_large_numbers_do_not_overflow(which, magnitude):
    tensors = [tensor.detach().clamp(-1, 1) for tensor in inputs(dtype=torch.float32)]
    tensors[which] *= magnitude
    out = neighborhood_attention(*tensors, 3, backend='cpu')
    doubles = [tensor.double() for tensor in tensors]
    expected = neighborhood_attention(*doubles, 3, backend='reference')
    torch.testing.assert_close(out.double(), expected, atol=1e-6 * expected.abs().max(), rtol=0)


@needs_kernels
@pytest.mark.parametrize('capability', ['default', 'avx2'])
def test_other_instruction_sets(capability):
    """The kernels for older processors, which torch chooses only once in a process."""
    code = """
import torch
from acmix_mm.ops import neighborhood_attention, shift_conv
torch.manual_seed(0)
tensors = [t.requires_grad_() for t in torch.randn(3, 1, 3, 9, 20, 21).unbind()]
weights = [t.requires_grad_() for t in (torch.randn(1, 9, 3), torch.randn(1, 27, 9, 3, 3))]
maps = torch.randn(1, 20, 21, 3, 16).permute(0, 3, 4, 1, 2).requires_grad_()
kernel = torch.randn(1, 80, 9, 3, 3).requires_grad_()
leaves = [*tensors, *weights, maps, kernel]
results = []
for backend in ('cpu', 'reference'):
    attention = neighborhood_attention(*tensors, 7, dilation=2, backend=backend)
    conv = shift_conv(tensors[0], weights[0], None, weights[1], backend=backend)
    by_line = shift_conv(maps, weights[0], None, kernel, backend=backend)
    loss = attention.square().sum() + conv.square().mean() + by_line.square().mean()
    results.append([attention, conv, by_line, *torch.autograd.grad(loss, leaves)])
for ours, theirs in zip(*results):
    # Sums of many terms, which single precision rounds according to their order.
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
"""
    run_python(code, ATEN_CPU_CAPABILITY=capability)


@needs_kernels
def test_refuses_other_devices():
    q, k, v = torch.empty(3, 1, 2, 4, 5, 6, device='meta').unbind()
    with pytest.raises(RuntimeError, match='must be on the CPU, got meta'):
        neighborhood_attention(q, k, v, 3, backend='cpu')
    assert available_backends('neighborhood_attention')[0] == 'cpu'


@needs_kernels
@pytest.mark.parametrize('name', ['q', 'k', 'v'])
def test_devices_must_agree(name):
    """With a tensor of another device torch calls the fake, whose memory nobody has written."""
    tensors = dict(zip('qkv', torch.zeros(3, 1, 2, 4, 5, 6), strict=True))
    tensors[name] = tensors[name].to('meta')
    window = dict(kernel_size=3, stride=1, dilation=1, scale=0.5)
    says = 'acmix_mm::neighborhood_attention_forward: all tensors must be on one device, got'
    with pytest.raises(RuntimeError, match=says):
        torch.ops.acmix_mm.neighborhood_attention_forward(**tensors, **window)


@needs_kernels
def test_devices_of_lists_must_agree():
    here, away = torch.zeros(1, 1, 4, 5, 6), torch.zeros(1, 1, 4, 5, 6, device='meta')
    for maps in ([here, away], [away, here]):
        with pytest.raises(RuntimeError, match='shift_conv_forward: all tensors must be on one'):
            torch.ops.acmix_mm.shift_conv_forward(maps, torch.zeros(8, 2, 3, 3), 1, 1)
