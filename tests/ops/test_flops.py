"""What torch's FlopCounterMode counts for the compiled operators."""

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from acmix_mm.backbones import ACmixResNet
from acmix_mm.complexity import measure_complexity
from acmix_mm.layers import ACmix
from acmix_mm.ops import (
    available_backends,
    neighborhood_attention,
    pointwise_conv,
    shift_conv,
    use_backend,
    window_attention,
)
from acmix_mm.ops.backends import cpu
from acmix_mm.ops.torch_compat import register_flop_formula

ATTENTION = [b for b in available_backends('neighborhood_attention') if b in ('cpu', 'triton')]
pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason='built without the kernels')


def flops(function: Callable[..., Tensor], *tensors: Tensor) -> tuple[int, int]:
    """FLOPs of a function, forward and backward."""
    leaves = [tensor.requires_grad_() for tensor in tensors]
    with FlopCounterMode(display=False) as forward:
        out = function(*leaves)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def test_pointwise_conv_is_counted_as_a_convolution():
    tensors = torch.randn(2, 3, 5, 6), torch.randn(8, 3), torch.randn(8)
    ours = flops(lambda *t: torch.cat(pointwise_conv(*t, 2, backend='cpu')), *tensors)
    theirs = flops(lambda x, weight, bias: F.conv2d(x, weight[..., None, None], bias), *tensors)
    assert ours == theirs
    assert ours[0] == 2 * 2 * 30 * 3 * 8


@pytest.mark.parametrize('stride', [1, 2])
def test_shift_conv_is_counted_as_the_composed_convolution(stride):
    maps, *weights = (torch.randn(s) for s in ((2, 6, 4, 7, 5), (2, 9, 6), (2, 8, 9, 3, 3)))

    def convolve(backend: str) -> Callable[..., Tensor]:
        return lambda a, b, fc, kernel: shift_conv((a, b), fc, None, kernel, stride, 1, backend)

    parts = maps[:, :2], maps[:, 2:].clone()
    (forward, backward), (composed, _) = (
        flops(convolve(b), *parts, *weights) for b in ('cpu', 'composed')
    )
    assert forward == composed
    # torch 2.13 counts the weights' gradient of a grouped convolution as if there were one group.
    assert backward == 2 * forward
    # The map of ones that carries the bias is not counted, as biases are not.
    weight, ones = torch.randn(8, 6, 3, 3), torch.randn(8, 7, 3, 3)
    operator = torch.ops.acmix_mm.shift_conv_forward
    assert flops(lambda *t: operator(t[:2], t[2], stride, 1), *parts, weight) == flops(
        lambda *t: operator(t[:2], t[2], stride, 1), *parts, ones
    )


@pytest.mark.parametrize('backend', ATTENTION)
def test_attention_is_counted_as_matrix_products(backend):
    q, k, v = torch.randn(3, 1, 2, 4, 5, 6).unbind()
    attend = partial(neighborhood_attention, kernel_size=3, backend=backend)
    attend(q, k, v)  # imports the kernels, which a counter that runs already does not notice
    ours = flops(attend, q, k, v)
    # One row of queries with 9 keys of its own for each pixel.
    rows, keys, values = (torch.randn(2 * 30, n, 4) for n in (1, 9, 9))
    theirs = flops(lambda q, k, v: (q @ k.mT).softmax(-1) @ v, rows, keys, values)
    assert ours[0] == theirs[0] == 2 * 2 * 2 * 4 * 30 * 9
    # The backward pass computes the logits again.
    assert ours[1] == theirs[1] + theirs[0] // 2


def test_attention_in_windows_is_counted_as_matrix_products():
    tensors = torch.randn(2, 6, 9, 3, 4, 5), torch.randn(4, 9, 9)
    ours, theirs = (
        flops(lambda *t, name=name: window_attention(*t, 3, backend=name), *tensors)
        for name in ('cpu', 'reference')
    )
    assert ours[0] == theirs[0] == 2 * 2 * 2 * 54 * 4 * 5 * 9
    # The backward pass computes the logits again.
    assert ours[1] == theirs[1] + theirs[0] // 2


@pytest.mark.parametrize('stride', [1, 2])
def test_layer_is_counted_as_its_parts(stride):
    layer, shape = ACmix(8, 12, stride=stride), (8, 8, 9, 7)
    position = flops(lambda x: layer.position(x)[0], torch.randn(1, 2, 9, 7))
    projections = 2 * 8 * 63 * 8 * 36
    fused = flops(layer, torch.randn(shape))
    with use_backend('cpu'):
        parts = flops(layer, torch.randn(shape))
    assert fused[0] == parts[0] > position[0] + projections
    # The backward pass projects again.
    assert fused[1] == parts[1] + projections


def test_network_is_counted_as_by_its_definition():
    network, x = ACmixResNet(26).eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x)
    definition = 2 * measure_complexity(network, x).macs
    assert counter.get_total_flops() == pytest.approx(definition, rel=0.01)


def test_broken_triton_does_no_harm(monkeypatch):
    """torch's counter imports Triton, and a broken installation raises errors of any type."""
    counter = 'torch.utils.flop_counter'

    class Broken:
        @staticmethod
        def find_spec(name: str, *_: Any) -> None:
            if name == counter:
                raise OSError('libtriton.so: cannot open shared object file')

    operator = torch.ops.acmix_mm.pointwise_conv_forward
    monkeypatch.delitem(sys.modules, counter)
    monkeypatch.setattr(sys, 'meta_path', [Broken, *sys.meta_path])
    with pytest.raises(OSError, match='libtriton'):
        import_module(counter)
    register_flop_formula(operator, len)
