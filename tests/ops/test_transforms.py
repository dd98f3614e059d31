"""Forward-mode differentiation and the transforms of torch.func, for every operator and backend."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from convolution_path import project_and_convolve
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian
from versions import needs_compiler

from acmix_mm.ops import (
    available_backends,
    neighborhood_aggregation,
    neighborhood_attention,
    pointwise_conv,
    window_attention,
)

COMPILED = ('cpu', 'triton')


def attend(*tensors: Tensor, backend: str | None) -> Tensor:
    return neighborhood_attention(*tensors, 3, stride=2, backend=backend)


def aggregate(*tensors: Tensor, backend: str | None) -> Tensor:
    return neighborhood_aggregation(*tensors, 3, backend=backend)


def convolve(*tensors: Tensor, backend: str | None) -> Tensor:
    return project_and_convolve(*tensors, stride=2, backend=backend)


def project(*tensors: Tensor, backend: str | None) -> Tensor:
    return torch.cat(pointwise_conv(*tensors, 2, backend=backend), 1)


def attend_in_windows(*tensors: Tensor, backend: str | None) -> Tensor:
    masks = torch.zeros(2, 1, 2, 2, dtype=torch.float64).unbind()
    return window_attention(*tensors, 2, masks, backend=backend)


# The function of each operator and the shapes of its tensors.
OPERATORS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    'neighborhood_attention': (attend, [(2, 1, 2, 2, 2), *[(2, 1, 2, 3, 4)] * 2]),
    'neighborhood_aggregation': (aggregate, [(2, 2, 9, 3, 2), (2, 4, 3, 2)]),
    'shift_conv': (
        convolve,
        [(2, 2, 3, 2), (6, 2), (6,), (1, 9, 3), (1, 9), (1, 4, 9, 3, 3)],
    ),
    'pointwise_conv': (project, [(2, 3, 2, 3), (4, 3), (4,)]),
    'window_attention': (attend_in_windows, [(1, 2, 4, 3, 1, 2), (1, 4, 4)]),
}
OF_TORCH = [
    pytest.param(name, backend, id=f'{name}-{backend}')
    for name in OPERATORS
    for backend in (None, *available_backends(name))
    if backend not in COMPILED
]
OF_OURS = [
    pytest.param(name, backend, id=f'{name}-{backend}')
    for name in OPERATORS
    for backend in available_backends(name)
    if backend in COMPILED
]


def case(name: str) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The function of an operator, and tensors for it."""
    function, shapes = OPERATORS[name]
    torch.manual_seed(0)
    return function, tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)


def loss(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    return function(*tensors).square().sum()


def tangents_like(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.randn_like(tensor) for tensor in tensors)


@pytest.mark.parametrize(('name', 'backend'), OF_TORCH)
def test_forward_derivatives(name, backend):
    function, tensors = case(name)
    tangents = tangents_like(tensors)
    jacobians = jacobian(partial(function, backend='reference'), tensors)
    expected = sum(
        torch.tensordot(j, tangent, tangent.dim())
        for j, tangent in zip(jacobians, tangents, strict=True)
    )
    function = partial(function, backend=backend)
    torch.testing.assert_close(torch.func.jvp(function, tensors, tangents)[1], expected)
    with forward_ad.dual_level():
        out = function(*map(forward_ad.make_dual, tensors, tangents))
        torch.testing.assert_close(forward_ad.unpack_dual(out).tangent, expected)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, fast_mode=True)


@pytest.mark.parametrize(('name', 'backend'), OF_TORCH)
def test_jacobians(name, backend):
    function, tensors = case(name)
    expected = jacobian(partial(function, backend='reference'), tensors)
    every = tuple(range(len(tensors)))
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        ours = transform(partial(function, backend=backend), every)(*tensors)
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(('name', 'backend'), OF_TORCH)
@pytest.mark.parametrize('batched', ['first', 'others', 'all'])
def test_batches_of_calls_and_their_gradients(name, backend, batched):
    """The maps or the weights may be common to the calls of a batch."""
    function, tensors = case(name)
    number = 3
    is_batched = [batched in ('all', 'first' if i == 0 else 'others') for i in range(len(tensors))]
    stacked = tuple(
        torch.stack([(n + 1) * tensor for n in range(number)]) if many else tensor
        for tensor, many in zip(tensors, is_batched, strict=True)
    )
    in_dims = tuple(0 if many else None for many in is_batched)
    every = tuple(range(len(tensors)))
    function, definition = (partial(function, backend=b) for b in (backend, 'reference'))
    outs = torch.func.vmap(function, in_dims)(*stacked)
    grads = torch.func.vmap(torch.func.grad(partial(loss, function), every), in_dims)(*stacked)
    for n in range(number):
        leaves = [
            (tensor[n] if many else tensor).clone().requires_grad_()
            for tensor, many in zip(stacked, is_batched, strict=True)
        ]
        torch.testing.assert_close(outs[n], definition(*leaves))
        expected = torch.autograd.grad(loss(definition, *leaves), leaves)
        torch.testing.assert_close(tuple(grad[n] for grad in grads), expected)


@pytest.mark.parametrize(('name', 'backend'), OF_TORCH)
def test_second_derivatives(name, backend):
    function, tensors = case(name)
    tangents = tangents_like(tensors)
    every = tuple(range(len(tensors)))
    definition = partial(loss, partial(function, backend='reference'))
    _, expected = torch.autograd.functional.hvp(definition, tensors, tangents)
    gradient = torch.func.grad(partial(loss, partial(function, backend=backend)), every)
    torch.testing.assert_close(torch.func.jvp(gradient, tensors, tangents)[1], expected)
    _, product = torch.func.vjp(gradient, *tensors)
    torch.testing.assert_close(product(tangents), expected)


@pytest.mark.parametrize(('name', 'backend'), OF_OURS)
def test_compiled_backends_refuse(name, backend):
    function, tensors = case(name)
    function = partial(function, backend=backend)
    transforms = [
        lambda: torch.func.jvp(function, tensors, tensors),
        lambda: torch.func.grad(partial(loss, function))(*tensors),
        lambda: torch.func.vmap(function)(*(tensor.unsqueeze(0) for tensor in tensors)),
    ]
    for transform in transforms:
        with pytest.raises(RuntimeError, match=f'{name}: backend .{backend}. cannot run: compiled'):
            transform()
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match='neither forward derivatives'):
        function(*map(forward_ad.make_dual, tensors, tensors))
    assert function(*tensors).isfinite().all()


@needs_compiler
@pytest.mark.parametrize('name', OPERATORS)
def test_forward_derivatives_of_compiled_code(name):
    """Code compiled before there was a tangent must not be used for it."""
    function, tensors = case(name)
    function = partial(function, backend=None)
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(*tensors), function(*tensors))
    with forward_ad.dual_level():
        duals = [*map(forward_ad.make_dual, tensors, tangents_like(tensors))]
        definition = function(*duals, backend='reference')
        ours, expected = map(forward_ad.unpack_dual, (compiled(*duals), definition))
        torch.testing.assert_close(ours.tangent, expected.tangent)
