"""The C++ operators refuse what would crash them, whoever calls them through the dispatcher."""

import pytest
import torch
from fresh_process import run_python

from acmix_mm.ops.backends import cpu

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason='built without the kernels')

# In a process of its own, which an unchecked operator ends with a signal.
CODE = """
import torch
from torch import zeros
import acmix_mm.ops

ops = torch.ops.acmix_mm
window = dict(kernel_size=3, stride=1, dilation=1, scale=0.5)
map_, map4 = zeros(1, 2, 4, 5, 6), zeros(1, 2, 5, 6)
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
])
backward = (ops.neighborhood_attention_backward, qkv | window | dict(
    grad_out=map_, out=map_, lse=map4), [
    dict(grad_out=map4), dict(out=zeros(1, 2, 4, 5, 5)), dict(lse=zeros(1, 2, 5, 5)),
    dict(lse=map4.double()), dict(grad_out=map_.double()), dict(lse=map_), dict(stride=0),
    dict(kernel_size=2), dict(v=zeros(1, 2, 1, 5, 6)), dict(q=map_.long()),
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
])
conv_backward = (ops.shift_conv_backward, conv[1] | dict(grad_out=zeros(1, 8, 5, 6)), [
    dict(grad_out=zeros(1, 8, 5, 5)), dict(grad_out=zeros(1, 4, 5, 6)), dict(grad_out=map_),
    dict(grad_out=zeros(1, 8, 5, 6).double()), dict(stride=2), dict(stride=0), dict(maps=[]),
])
count = 0
for op, good, changes in [
    attention, backward, pointwise, pointwise_backward, conv, conv_backward
]:
    op(**good)
    for change in changes:
        try:
            op(**(good | change))
        except (RuntimeError, NotImplementedError) as error:
            count += 1
        else:
            raise AssertionError(f'{op} took {change}')
print(count)
"""


def test_bad_input_is_an_error_not_a_crash():
    count = int(run_python(CODE).stdout.split()[-1])
    assert count >= 80


def test_scratch_memory_that_cannot_be_had_is_an_error():
    """Padded rows of a dilation that nobody needs: more memory than there is."""
    q = torch.zeros(1, 1, 512, 4, 4)
    with pytest.raises((RuntimeError, MemoryError)):
        torch.ops.acmix_mm.neighborhood_attention_forward(q, q, q, 3, 1, 2**22, 1.0)


def test_strided_and_expanded_input():
    op = torch.ops.acmix_mm.neighborhood_attention_forward
    whole = torch.randn(2, 3, 4, 6, 10)
    tensors = [whole[..., ::2], whole[..., 1::2], whole[:1, ..., :5].expand(2, -1, -1, -1, -1)]
    plain = [tensor.contiguous() for tensor in tensors]
    for strided, expected in zip(op(*tensors, 3, 1, 1, 1.0), op(*plain, 3, 1, 1, 1.0), strict=True):
        assert torch.equal(strided, expected)
