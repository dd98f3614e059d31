"""The C++ operators refuse what would crash them, whoever calls them through the dispatcher."""

from collections.abc import Callable, Iterator

import pytest
import torch
from fresh_process import run_python
from torch import Tensor

from acmix_mm.ops.backends import cpu

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason='built without the kernels')

# In a process of its own, which an unchecked operator ends with a signal.
CODE = """
import torch
from torch import zeros
import acmix_mm.ops

ops = torch.ops.acmix_mm
window = dict(kernel_size=3, stride=1, dilation=1, scale=0.5)
map_, map4, one = zeros(1, 2, 4, 5, 6), zeros(1, 2, 5, 6), zeros(1)
qkv = dict(q=map_, k=map_, v=map_)
attention = (ops.neighborhood_attention_forward, qkv | window, [
    dict(q=zeros(1, 2, 4, 5)), dict(k=zeros(4, 5)), dict(v=zeros(1, 2, 1, 5, 6)),
    dict(v=zeros(1, 2, 4, 5, 5)), dict(q=zeros(1, 2, 4, 3, 3)), dict(q=zeros(2, 2, 4, 5, 6)),
    dict(q=zeros(1, 3, 4, 5, 6)), dict(q=zeros(1, 2, 5, 5, 6)), dict(q=map_.long()),
    dict(q=map_.double()), dict(v=map_.half()), dict.fromkeys('qkv', map_.long()),
    dict.fromkeys('qkv', map_.bool()), dict.fromkeys('qkv', map_.cfloat()),
    dict.fromkeys('qkv', zeros(1, 2, 0, 5, 6)), dict.fromkeys('qkv', zeros(1, 0, 4, 5, 6)),
    dict.fromkeys('qkv', zeros(1, 2, 4, 0, 6)), dict(q=map_.to_sparse()),
    dict(stride=0), dict(stride=-1), dict(stride=2), dict(stride=2**62), dict(dilation=0),
    dict(dilation=-3), dict(dilation=2**62), dict(kernel_size=0), dict(kernel_size=-3),
    dict(kernel_size=4), dict(kernel_size=2**62 + 1), dict(kernel_size=2**31 + 1, dilation=2**31),
    # Sizes of scratch memory that 64 bits do not hold: 2**64 itself would be a division by 0.
    dict.fromkeys('qkv', one.expand(1, 1, 2**18, 2, 2)) | dict(dilation=2**22),
    dict.fromkeys('kv', one.expand(1, 1, 2**24, 1, 2**16)) | dict(
        q=one.expand(1, 1, 2**24, 1, 1), kernel_size=1, stride=2**24),
    # And one that no address space holds.
    dict.fromkeys('qkv', one.expand(1, 1, 16, 4, 4)) | dict(dilation=2**20),
    dict.fromkeys('qkv', zeros(9, 1, 16, 4, 4)) | dict(dilation=2**20),
])
backward = (ops.neighborhood_attention_backward, qkv | window | dict(
    grad_out=map_, lse=map4), [
    dict(grad_out=map4), dict(grad_out=zeros(1, 2, 4, 5, 5)), dict(lse=zeros(1, 2, 5, 5)),
    dict(lse=map4.double()), dict(grad_out=map_.double()), dict(lse=map_), dict(stride=0),
    dict(kernel_size=2), dict(v=zeros(1, 2, 1, 5, 6)), dict(q=map_.long()),
    dict(kernel_size=2**22 + 1), dict(dilation=2**20),
])
x, weight, bias = map4, zeros(6, 2), zeros(6)
pointwise = (ops.pointwise_conv_forward, dict(x=x, weight=weight, bias=bias, chunks=3), [
    dict(x=zeros(2, 5, 6)), dict(x=zeros(1, 3, 5, 6)), dict(x=zeros(1, 0, 5, 6)),
    dict(x=x.half()), dict(x=x.long()), dict(weight=zeros(6)), dict(weight=zeros(0, 2)),
    dict(weight=weight.double()), dict(weight=zeros(7, 2), bias=zeros(7)), dict(bias=zeros(5)),
    dict(bias=zeros(6, 1)), dict(bias=bias.double()), dict(chunks=0), dict(chunks=-1),
    dict(chunks=4), dict(chunks=2**62),
])
grads = [map4] * 3
pointwise_backward = (ops.pointwise_conv_backward, dict(grads=grads, x=x, weight=weight), [
    dict(grads=[]), dict(grads=[map4] * 2), dict(grads=[map_] * 3), dict(x=zeros(2, 2, 5, 6)),
    dict(grads=[map4, map4, map4.double()]), dict(weight=zeros(6, 3)),
])
maps, kernel = [zeros(1, 3, 4, 5, 6), zeros(1, 1, 4, 5, 6)], zeros(8, 4, 3, 3)
conv = (ops.shift_conv_forward, dict(maps=maps, weight=kernel, stride=1, dilation=1), [
    dict(maps=[]), dict(maps=maps[:1], weight=zeros(8, 5, 3, 3)), dict(maps=[map4]),
    dict(maps=[maps[0], zeros(1, 1, 4, 5, 5)]), dict(maps=[maps[0], zeros(2, 1, 4, 5, 6)]),
    dict(maps=[maps[0], maps[1].double()]), dict(maps=[m.long() for m in maps]),
    dict(maps=[zeros(1, 4, 0, 5, 6)]), dict(weight=zeros(8, 4, 3)), dict(weight=zeros(8, 3, 3, 3)),
    dict(weight=zeros(6, 4, 3, 3)), dict(weight=zeros(0, 4, 3, 3)), dict(weight=zeros(8, 4, 3, 5)),
    dict(weight=zeros(8, 4, 2, 2)), dict(weight=kernel.double()), dict(weight=zeros(8, 4, 0, 0)),
    dict(stride=0), dict(stride=-2), dict(dilation=0), dict(dilation=2**62),
    dict(dilation=2**22), dict(stride=2**24, maps=[one.expand(1, 2**20, 1, 1, 2**20)],
                               weight=one.expand(1, 2**20, 1, 1)),
])
conv_backward = (ops.shift_conv_backward, conv[1] | dict(grad_out=zeros(1, 8, 5, 6)), [
    dict(grad_out=zeros(1, 8, 5, 5)), dict(grad_out=zeros(1, 4, 5, 6)), dict(grad_out=map_),
    dict(grad_out=zeros(1, 8, 5, 6).double()), dict(stride=2), dict(stride=0), dict(maps=[]),
    dict(dilation=2**22), dict(maps=[maps[0], maps[0]]), dict(weight=zeros(8, 4, 5, 3)),
])
layer = (ops.acmix_layer_forward, dict(
    x=x, qkv_weight=zeros(12, 2), qkv_bias=zeros(12), position=zeros(2, 5, 6),
    conv_weight=zeros(4, 6, 3, 3), alpha=one, kernel_size=3, stride=1, dilation=1,
    scale=0.5), [
    dict(x=zeros(2, 5, 6)), dict(x=zeros(1, 3, 5, 6)), dict(x=zeros(1, 2, 0, 6)), dict(x=x.half()),
    dict(x=x.double()), dict(x=x.long()), dict(x=x.to_sparse()), dict(qkv_weight=zeros(9, 2)),
    dict(qkv_weight=zeros(12, 3)), dict(qkv_weight=zeros(12, 2).double()), dict(qkv_bias=zeros(11)),
    dict(qkv_bias=zeros(12, 1)), dict(position=zeros(2, 5, 5)), dict(position=zeros(3, 5, 6)),
    dict(position=zeros(1, 2, 5, 6)), dict(position=zeros(0, 5, 6)), dict(alpha=zeros(2)),
    dict(alpha=zeros(())), dict(alpha=one.double()), dict(conv_weight=zeros(4, 5, 3, 3)),
    dict(conv_weight=zeros(5, 6, 3, 3)), dict(conv_weight=zeros(4, 0, 3, 3)),
    dict(conv_weight=zeros(4, 6, 3, 5)), dict(conv_weight=zeros(4, 6, 2, 2)), dict(kernel_size=0),
    dict(kernel_size=4), dict(kernel_size=2**62 + 1), dict(kernel_size=2**22 + 1), dict(dilation=0),
    dict(dilation=2**62), dict(dilation=2**22), dict(stride=0), dict(stride=-2),
    dict(stride=2**25), dict(stride=2**24),
])
layer_backward = (ops.acmix_layer_backward, layer[1] | dict(
    grad_out=zeros(1, 4, 5, 6), lse=map4), [
    dict(grad_out=map4), dict(grad_out=map_), dict(grad_out=zeros(1, 4, 5, 6).double()),
    dict(lse=zeros(1, 3, 5, 6)), dict(lse=map_), dict(lse=map4.double()), dict(stride=2),
    dict(stride=2, grad_out=zeros(1, 4, 3, 3)), dict(stride=2, lse=zeros(1, 2, 3, 3)), *layer[2],
])
windows = (ops.window_attention_forward, dict(
    qkv=zeros(1, 4, 6, 3, 2, 5), bias=zeros(2, 4, 4), row_masks=None, column_masks=zeros(1, 2, 2),
    window_size=2, scale=0.5), [
    dict(qkv=zeros(4, 6, 3, 2, 5)), dict(qkv=zeros(1, 4, 6, 2, 2, 5)), dict(window_size=0),
    dict(qkv=zeros(1, 4, 5, 3, 2, 5)), dict(qkv=zeros(1, 3, 6, 3, 2, 5)), dict(window_size=3),
    dict(qkv=zeros(1, 4, 6, 3, 2, 0)), dict(qkv=zeros(1, 4, 6, 3, 0, 5)), dict(window_size=-2),
    dict(qkv=zeros(1, 0, 6, 3, 2, 5)), dict(qkv=zeros(1, 4, 6, 3, 2, 5).half()),
    dict(qkv=zeros(1, 4, 6, 3, 2, 5).double()), dict(qkv=zeros(1, 4, 6, 3, 2, 5).long()),
    dict(qkv=zeros(1, 4, 6, 3, 2, 5).to_sparse()), dict(bias=zeros(2, 4)),
    dict(bias=zeros(3, 4, 4)), dict(bias=zeros(2, 4, 5)), dict(bias=zeros(2, 4, 4).double()),
    dict(row_masks=zeros(3, 2, 2)), dict(row_masks=zeros(1, 2, 3)), dict(row_masks=zeros(2, 2)),
    dict(column_masks=zeros(1, 2, 2).double()), dict(column_masks=zeros(4, 2, 2)),
    dict(window_size=2**62),
    # Sizes of scratch memory that are refused.
    dict(qkv=one.expand(1, 256, 256, 3, 2, 1), bias=one.expand(2, 2**16, 2**16), column_masks=None,
         window_size=256),
    dict(qkv=one.expand(1, 16, 16, 3, 2, 2**24), bias=zeros(2, 256, 256), column_masks=None,
         window_size=16),
])
windows_backward = (ops.window_attention_backward, windows[1] | dict(
    grad_out=zeros(1, 4, 6, 2, 5), lse=zeros(6, 2, 4)), [
    dict(grad_out=zeros(1, 4, 6, 2, 4)), dict(grad_out=zeros(1, 4, 6, 10)), dict(lse=zeros(6, 2)),
    dict(grad_out=zeros(1, 4, 6, 2, 5).double()), dict(lse=zeros(6, 2, 5)),
    dict(lse=zeros(6, 2, 4).double()), *windows[2],
])
count = 0
for op, good, changes in [
    attention, backward, pointwise, pointwise_backward, conv, conv_backward, layer, layer_backward,
    windows, windows_backward,
]:
    op(**good)
    for change in changes:
        try:
            op(**(good | change))
        except RuntimeError as error:
            assert str(op).rpartition('.')[2] in str(error), error
            count += 1
        else:
            raise AssertionError(f'{op} took {change}')
print(count)
"""


def test_bad_input_is_an_error_not_a_crash():
    count = int(run_python(CODE).stdout.split()[-1])
    assert count >= 215


@pytest.mark.parametrize(
    ('kernel_size', 'stride', 'dilation'), [(7, 1, 10000), (10001, 1, 1), (3, 1, 2**20)]
)
def test_geometry_that_needs_too_much_scratch_memory_is_refused(kernel_size, stride, dilation):
    q = torch.zeros(1, 1, 4, 6, 6)
    with pytest.raises(RuntimeError, match=r'need scratch memory for .* at most .* are supported'):
        torch.ops.acmix_mm.neighborhood_attention_forward(
            q, q, q, kernel_size, stride, dilation, 1.0
        )


def test_scratch_memory_that_cannot_be_had_is_an_error():
    """A process that may take only 1 GiB more, and windows that need 2.3 GiB."""
    code = """
import resource
import torch
import acmix_mm.ops

with open('/proc/self/statm') as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
q = torch.zeros(1, 1, 4, 6, 6)
try:
    torch.ops.acmix_mm.neighborhood_attention_forward(q, q, q, 7, 1, 2000, 1.0)
except RuntimeError as error:
    print(error)
"""
    assert 'not enough memory for the scratch space' in run_python(code).stdout


def layouts(*shape: int) -> Iterator[Tensor]:
    """Yield tensors of a shape that are not contiguous, each with other strides."""
    *first, last = shape
    yield torch.randn(*first, 2 * last)[..., ::2]
    yield torch.randn(*first, last + 3)[..., 2:-1]
    yield torch.randn(shape[::-1]).permute(*range(len(shape))[::-1])
    yield torch.randn(1, *shape[1:]).expand(shape)
    yield torch.randn(*first, 1).expand(shape)


def assert_same_for_any_strides(op: Callable, shapes: list[tuple[int, ...]]) -> None:
    for tensors in zip(*(layouts(*shape) for shape in shapes), strict=True):
        assert not any(tensor.is_contiguous() for tensor in tensors)
        plain = [tensor.contiguous() for tensor in tensors]
        for strided, expected in zip(op(*tensors), op(*plain), strict=True):
            assert torch.equal(strided, expected)


@pytest.mark.parametrize('window', [(3, 1, 1), (5, 2, 1), (3, 1, 2)])
def test_attention_reads_any_strides(window):
    forward = torch.ops.acmix_mm.neighborhood_attention_forward
    backward = torch.ops.acmix_mm.neighborhood_attention_backward
    keys, queries = (2, 3, 4, 6, 8), (2, 3, 4, 6 // window[1], 8 // window[1])
    assert_same_for_any_strides(lambda *qkv: forward(*qkv, *window, 0.5), [queries, keys, keys])
    assert_same_for_any_strides(
        lambda *tensors: backward(*tensors, *window, 0.5),
        [queries, queries, keys, keys, queries[:2] + queries[3:]],
    )


@pytest.mark.parametrize('geometry', [(1, 1), (2, 1), (1, 2)])
def test_shift_conv_reads_any_strides(geometry):
    forward = torch.ops.acmix_mm.shift_conv_forward
    backward = torch.ops.acmix_mm.shift_conv_backward
    maps, weight = [(2, 3, 4, 6, 8), (2, 2, 4, 6, 8)], (8, 6, 3, 3)
    grad = (2, 8, 6 // geometry[0], 8 // geometry[0])

    def gradients(grad: Tensor, a: Tensor, b: Tensor, weight: Tensor) -> list[Tensor]:
        grad_maps, grad_weight = backward(grad, [a, b], weight, *geometry)
        return [*grad_maps, grad_weight]

    assert_same_for_any_strides(
        lambda a, b, weight: [forward([a, b], weight, *geometry)], [*maps, weight]
    )
    assert_same_for_any_strides(gradients, [grad, *maps, weight])


@pytest.mark.parametrize('size', [(1, 1), (5, 1), (1, 20), (9, 13)])
def test_shift_conv_reads_maps_with_channels_innermost(size):
    """4 are rearranged within the operator, which keeps them as they are."""
    forward, backward = (
        torch.ops.acmix_mm.shift_conv_forward,
        torch.ops.acmix_mm.shift_conv_backward,
    )
    maps = torch.randn(2, *size, 3, 4).permute(0, 3, 4, 1, 2).requires_grad_()
    weight, grad = torch.randn(8, 3, 3, 3), torch.randn(2, *size, 8).permute(0, 3, 1, 2)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: None):
        out = forward([maps], weight, 1, 1)
    assert maps.data_ptr() in {tensor.data_ptr() for tensor in kept}
    near = maps.detach().contiguous()
    assert torch.equal(out, forward([near], weight, 1, 1))
    (grad_maps,), grad_weight = backward(grad, [maps.detach()], weight, 1, 1)
    (expected,), expected_weight = backward(grad.contiguous(), [near], weight, 1, 1)
    assert torch.equal(grad_maps, expected)
    assert torch.equal(grad_weight, expected_weight)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('outputs', [1, 2, 3, 7])
@pytest.mark.parametrize(
    ('size', 'window'),
    [
        ((7, 21), (3, 1, 1)),
        ((1, 1), (3, 1, 1)),
        ((14, 9), (3, 1, 2)),
        ((20, 5), (5, 2, 3)),
        ((8, 9), (1, 3, 2)),
    ],
)
def test_shift_conv_computes_lines_of_channels_together(size, window, outputs, dtype):
    """With its results in the order of its maps; and with maps of rows, to which they are equal."""
    kernel_size, *geometry = window
    sides = [-(-side // geometry[0]) for side in size]
    whole = torch.randn(2, *size, 5, 32, dtype=dtype).permute(0, 3, 4, 1, 2)
    parts = [whole[:, :2], whole[:, 2:]]
    weight = torch.randn(32 * outputs, 6, kernel_size, kernel_size, dtype=dtype)
    grad = torch.randn(2, *sides, 32 * outputs, dtype=dtype).permute(0, 3, 1, 2)
    ops = torch.ops.acmix_mm
    out = ops.shift_conv_forward(parts, weight, *geometry)
    grads, grad_weight = ops.shift_conv_backward(grad, parts, weight, *geometry)
    assert out.permute(0, 2, 3, 1).is_contiguous()
    assert all(grad.permute(0, 3, 4, 1, 2).is_contiguous() for grad in grads)

    rows = [part.contiguous() for part in parts]
    expected, expected_weight = ops.shift_conv_backward(grad, rows, weight, *geometry)
    pairs = [
        (out, ops.shift_conv_forward(rows, weight, *geometry)),
        *zip(grads, expected, strict=True),
        (grad_weight, expected_weight),
    ]
    for ours, theirs in pairs:
        error = (ours - theirs).abs().max() / theirs.abs().max()
        assert error < (1e-12 if dtype == torch.float64 else 3e-6)


def test_shift_conv_reads_lines_of_channels_with_any_strides():
    forward, backward = (
        torch.ops.acmix_mm.shift_conv_forward,
        torch.ops.acmix_mm.shift_conv_backward,
    )
    plain = torch.randn(2, 6, 9, 3, 16).permute(0, 3, 4, 1, 2)
    cut = torch.randn(2, 8, 12, 3, 16)[:, 1:7, 2:11].permute(0, 3, 4, 1, 2)
    map_by_map = torch.randn(3, 2, 6, 9, 16).permute(1, 0, 4, 2, 3)
    one_image = torch.randn(1, 6, 9, 3, 16).permute(0, 3, 4, 1, 2).expand(2, -1, -1, -1, -1)
    weight = torch.randn(32, 3, 3, 3).transpose(2, 3)
    grad = torch.randn(2, 6, 9, 32).permute(0, 3, 1, 2)
    for maps in (cut, map_by_map, one_image):
        near = plain.clone().copy_(maps)
        assert maps.stride() != near.stride()
        assert torch.equal(forward([maps], weight, 1, 1), forward([near], weight, 1, 1))
        (grad_maps,), grad_weight = backward(grad.contiguous(), [maps], weight, 1, 1)
        (expected,), expected_weight = backward(grad, [near], weight, 1, 1)
        assert torch.equal(grad_maps, expected)
        assert torch.equal(grad_weight, expected_weight)


def test_pointwise_conv_reads_any_strides():
    forward = torch.ops.acmix_mm.pointwise_conv_forward
    backward = torch.ops.acmix_mm.pointwise_conv_backward
    x, weight, grad = (2, 4, 5, 6), (6, 4), (2, 3, 5, 6)
    bias = torch.randn(12)[::2]
    assert_same_for_any_strides(lambda x, weight: forward(x, weight, bias, 2), [x, weight])
    assert torch.equal(
        forward(torch.ones(x), torch.ones(weight), bias, 1)[0],
        forward(torch.ones(x), torch.ones(weight), bias.contiguous(), 1)[0],
    )
    assert_same_for_any_strides(
        lambda a, b, x, weight: backward([a, b], x, weight), [grad, grad, x, weight]
    )


@pytest.mark.parametrize('masks', [(None, None), (torch.zeros(1, 4, 4), torch.ones(2, 4, 4))])
def test_window_attention_reads_any_strides(masks):
    forward = torch.ops.acmix_mm.window_attention_forward
    backward = torch.ops.acmix_mm.window_attention_backward
    qkv, bias, grad, lse = (2, 8, 12, 3, 2, 4), (2, 16, 16), (2, 8, 12, 2, 4), (12, 2, 16)
    assert_same_for_any_strides(lambda *t: forward(*t, *masks, 4, 0.5), [qkv, bias])
    assert_same_for_any_strides(
        lambda grad, qkv, bias, lse: backward(grad, qkv, bias, *masks, lse, 4, 0.5),
        [grad, qkv, bias, lse],
    )


def test_empty_batch():
    ops = torch.ops.acmix_mm
    q, by_row, x = torch.zeros(0, 2, 4, 5, 6), torch.zeros(0, 3, 4, 5, 6), torch.zeros(0, 4, 5, 6)
    weight = torch.ones(6, 4)
    out, lse = ops.neighborhood_attention_forward(q, q, q, 3, 1, 1, 0.5)
    grads = ops.neighborhood_attention_backward(out, q, q, q, lse, 3, 1, 1, 0.5)
    assert [grad.shape for grad in grads] == [q.shape] * 3
    by_line = torch.zeros(0, 5, 6, 3, 16).permute(0, 3, 4, 1, 2)
    for maps, kernel in (by_row, torch.ones(8, 3, 3, 3)), (by_line, torch.ones(32, 3, 3, 3)):
        out = ops.shift_conv_forward([maps], kernel, 1, 1)
        (grad_maps,), grad_kernel = ops.shift_conv_backward(out, [maps], kernel, 1, 1)
        assert grad_maps.shape == maps.shape
        assert torch.equal(grad_kernel, torch.zeros_like(kernel))
    outs = ops.pointwise_conv_forward(x, weight, torch.ones(6), 2)
    grad_x, grad_weight, grad_bias = ops.pointwise_conv_backward(outs, x, weight)
    assert grad_x.shape == x.shape
    assert torch.equal(grad_weight, torch.zeros_like(weight))
    assert torch.equal(grad_bias, torch.zeros(6))
    qkv, bias = torch.zeros(0, 4, 6, 3, 2, 5), torch.ones(2, 4, 4)
    out, lse = ops.window_attention_forward(qkv, bias, None, None, 2, 0.5)
    grad_qkv, grad_bias = ops.window_attention_backward(out, qkv, bias, None, None, lse, 2, 0.5)
    assert grad_qkv.shape == qkv.shape
    assert torch.equal(grad_bias, torch.zeros_like(bias))
