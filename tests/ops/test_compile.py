"""Every backend under torch.compile and torch.export."""

from collections.abc import Callable

import pytest
import torch
from convolution_path import project_and_convolve
from torch import Tensor, nn
from versions import needs_compiler

from acmix_mm.ops import available_backends, neighborhood_attention, window_attention

pytestmark = needs_compiler


def attend(backend: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    tensors = [t.requires_grad_() for t in torch.randn(3, 1, 2, 4, 9, 10).unbind()]
    return lambda *t: neighborhood_attention(*t, 3, backend=backend), tensors


def convolve(backend: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    shapes = [(1, 5, 9, 10), (12, 5), (12,), (1, 9, 6), (1, 9), (1, 4, 9, 3, 3)]
    tensors = [torch.randn(shape).requires_grad_() for shape in shapes]
    return lambda *t: project_and_convolve(*t, stride=2, backend=backend), tensors


def attend_in_windows(backend: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    tensors = [torch.randn(s).requires_grad_() for s in ((1, 4, 6, 3, 2, 5), (2, 4, 4))]
    masks = torch.randn(2, 1, 2, 2).unbind()
    return lambda *t: window_attention(*t, 2, masks, backend=backend), tensors


# Triton's kernels have tests of their own: here they run only where there is a GPU.
CASES = [
    pytest.param(make, backend, id=f'{name}-{backend}')
    for make, name in (
        (attend, 'neighborhood_attention'),
        (convolve, 'shift_conv'),
        (attend_in_windows, 'window_attention'),
    )
    for backend in available_backends(name)
    if backend != 'triton'
]


@pytest.mark.parametrize(('make', 'backend'), CASES)
def test_compiles_without_graph_breaks(make, backend):
    function, tensors = make(backend)
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend='aot_eager')
    results = []
    for call in (compiled, function):
        out = call(*tensors)
        results.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(('make', 'backend'), CASES)
def test_exports(make, backend):
    function, tensors = make(backend)

    class Module(nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return function(*tensors)

    tensors = tuple(t.detach() for t in tensors)
    program = torch.export.export(Module(), tensors)
    torch.testing.assert_close(program.module()(*tensors), function(*tensors))
