# SPDX-License-Identifier: Apache-2.0
"""Functions of newer versions of torch that the oldest supported ones, from 2.1 on, lack.

The package takes them from here alone, which ``tests/ops/test_torch_compat.py`` checks. Where torch
has the function, it is torch's own.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

F = TypeVar('F', bound=Callable[..., Any])

# From torch 2.4 on. Older ones get the operators by way of a library of implementations.
_IS_NEW = hasattr(torch.library, 'register_autograd')
_LIBRARY = None if _IS_NEW else torch.library.Library('acmix_mm', 'IMPL')

# torch.compile of each version knows this function by its own name.
is_compiling: Callable[[], bool] = (
    torch.compiler.is_compiling
    if hasattr(torch.compiler, 'is_compiling')
    else torch._utils.is_compiling
)

# From torch 2.7 on. Older ones do not tell an export from a compilation.
is_exporting: Callable[[], bool] = getattr(torch.compiler, 'is_exporting', lambda: False)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return the dtype to which autocast casts on a type of device, or None where it is off.

    Args:
        device_type: Such as ``'cpu'`` or ``'cuda'``.
    """
    if _IS_NEW:
        known = torch.amp.is_autocast_available(device_type)
        enabled = known and torch.is_autocast_enabled(device_type)
        return torch.get_autocast_dtype(device_type) if enabled else None
    if device_type == 'cpu':
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    enabled = device_type == 'cuda' and torch.is_autocast_enabled()
    return torch.get_autocast_gpu_dtype() if enabled else None


def unfused_attention() -> AbstractContextManager:
    """Context in which ``F.scaled_dot_product_attention`` is made of torch's other operators."""
    if hasattr(torch.nn, 'attention'):  # since torch 2.3
        return torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    return torch.backends.cuda.sdp_kernel(enable_flash=False, enable_mem_efficient=False)


def uncompiled_before_2_4(function: F) -> F:
    """Decorator: with an older torch, ``torch.compile`` calls the function instead of tracing it.

    Its compiler fails on the checks of shapes. The graph breaks at such a call.
    """
    return function if _IS_NEW else torch.compiler.disable(function)


def register_load_state_dict_pre_hook(module: nn.Module, hook: Callable[..., None]) -> None:
    """As :meth:`torch.nn.Module.register_load_state_dict_pre_hook`, public since torch 2.5."""
    if hasattr(module, 'register_load_state_dict_pre_hook'):
        module.register_load_state_dict_pre_hook(hook)
    else:
        module._register_load_state_dict_pre_hook(hook, with_module=True)


def register_fake(operator: str, function: Callable[..., Any]) -> None:
    """As :func:`torch.library.register_fake`, for an operator ``acmix_mm::<name>``."""
    if _LIBRARY is None:
        torch.library.register_fake(operator, function)
    else:
        _LIBRARY.impl(operator.removeprefix('acmix_mm::'), function, 'Meta')


def register_autograd(
    operator: str,
    backward: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
) -> None:
    """As :func:`torch.library.register_autograd`, for an operator ``acmix_mm::<name>``.

    Before torch 2.4, ``ctx.needs_input_grad`` is not that of the arguments, and forward-mode
    differentiation and :mod:`torch.func` raise an error.
    """
    if _LIBRARY is None:
        torch.library.register_autograd(operator, backward, setup_context=setup_context)
        return
    name = operator.removeprefix('acmix_mm::')
    function = _autograd_function(
        getattr(torch.ops.acmix_mm, name).default, backward, setup_context
    )
    _LIBRARY.impl(name, function, 'Autograd')


def register_flop_formula(operator: Any, formula: Callable[..., int]) -> None:
    """As :func:`torch.utils.flop_counter.register_flop_formula`, where that can be imported.

    It cannot where a broken Triton is installed, which torch imports there. torch 2.1 does not have
    the function, and that of torch 2.4 writes into its table what no counter looks up.
    """
    try:
        flop_counter = import_module('torch.utils.flop_counter')
    except Exception:  # a broken installation raises errors of any type
        return
    if hasattr(flop_counter, 'flop_registry'):
        flop_counter.flop_registry[operator] = flop_counter.shape_wrapper(formula)
    else:
        flop_counter.flop_mapping[operator] = formula  # torch 2.1, which passes shapes


def _autograd_function(
    operator: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., None] | None,
) -> Callable[..., Any]:
    """Return the operator with autograd, as a function of the same arguments."""

    class Differentiable(torch.autograd.Function):
        """The operator with its lists of tensors taken apart, which autograd does not look into."""

        @staticmethod
        def forward(ctx: Any, structure: Any, *flat: Any) -> tuple[Any, ...]:
            inputs = tuple(tree_unflatten([*flat], structure))
            with torch._C._AutoDispatchBelowAutograd():
                output = operator(*inputs)
            if setup_context is not None:
                setup_context(ctx, inputs, output)
            flat_output, ctx.structure = tree_flatten(output)
            return *flat_output, ctx.structure

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            grads = tree_unflatten([*grads[:-1]], ctx.structure)
            grads = grads if isinstance(grads, tuple) else (grads,)
            return None, *tree_flatten(backward(ctx, *grads))[0]

    def call(*args: Any) -> Any:
        flat, structure = tree_flatten(args)
        *flat_output, structure = Differentiable.apply(structure, *flat)
        return tree_unflatten(flat_output, structure)

    return call
