# SPDX-License-Identifier: Apache-2.0
"""Count what a training step of a layer asks of a GPU, without one: kernels and bytes.

    python -m benchmarks.count_launches

A step runs on the meta device, where nothing is computed. Every Triton kernel counts, and every
operator of torch that is not a view counts as one, that reads its inputs and writes its outputs
once. That is a lower bound: cuDNN and cuBLAS may launch several.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from acmix_mm.layers import ACmix
from acmix_mm.ops import gpu_layer, size_cache
from acmix_mm.ops.backends import triton, triton_kernels, triton_layer
from acmix_mm.ops.backends.registry import OPERATORS
from acmix_mm.runtime.markdown import table

from .cases import STAGES
from .gpu.timings import UsingBackends

# Operators that allocate memory or look at tensors differently, without a kernel.
_FREE = (
    'empty', 'empty_like', 'new_empty', 'empty_strided', 'detach', 'alias', '_unsafe_view',
    '_reshape_alias', 'lift_fresh', 'promote_types',
)  # fmt: skip


INSIDE: dict[Any, Callable[..., Any]] = {
    triton_kernels._attend._opoverload: triton_kernels.run_forward,
    triton_kernels._differentiate._opoverload: triton_kernels.run_backward,
    triton_layer.run._opoverload: triton_layer.run_forward,
    triton_layer._differentiate._opoverload: triton_layer.run_backward,
}


@dataclass
class Count:
    """What a step does.

    Attributes:
        kernels: Number of kernels by operator.
        megabytes: What they read and write.
    """

    kernels: Counter = field(default_factory=Counter)
    megabytes: float = 0.0


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = Count()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence = (), kwargs: dict | None = None
    ) -> Any:
        if func in INSIDE:  # an operator made of several kernels
            with self:
                return INSIDE[func](*args)
        out = func(*args, **kwargs or {})
        name = func.overloadpacket.__name__
        copies = name == 'contiguous' and out is not args[0] and out._base is None
        view = func.is_view and not copies  # it returns its argument where it can
        if not view and name not in _FREE:
            self._add(name, tree_flatten((args, kwargs, out))[0])
        return out

    @contextmanager
    def counting_kernels(self) -> Iterator['_Counting']:
        """Count Triton kernels as well as operators of torch."""
        with ExitStack() as stack:
            for module in (triton_kernels, triton_layer):
                stack.enter_context(mock.patch.object(module, 'launch', self._launch))
            stack.enter_context(mock.patch.object(triton_layer, '_run', self._run))
            yield stack.enter_context(self)

    def _launch(self, kernel: Any, images: Any, others: Any, *_: Any, **__: Any) -> None:
        # The convolution, the last image of the forward pass, is read and written.
        twice = images[-1:] if kernel is triton_kernels.forward else ()
        self._add(kernel.__name__, (*images, *others, *twice))

    def _run(self, kernel: Any, grid: Any, *tensors: Tensor, **_: Any) -> None:
        self._add(kernel.__name__, tensors)

    def _add(self, name: str, arguments: Sequence[Any]) -> None:
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        self.count.kernels[name] += 1
        self.count.megabytes += 1e-6 * sum(map(_bytes, tensors))


def _bytes(tensor: Tensor) -> int:
    """Bytes of a tensor, of which expanded axes are read once."""
    sizes = (n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return tensor.element_size() * torch.Size(sizes).numel()


def count_step(
    make: Callable[[], nn.Module], shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> tuple[Count, Count]:
    """Count the forward and the backward pass of a module on one input."""
    with torch.device('meta'):
        module, x = make().to(dtype), torch.empty(shape, dtype=dtype).requires_grad_()
    with _as_on_a_gpu():  # without that mode, in which layers show the calls of their parts
        module(x)  # fills the cache of what depends on the size alone
        with _Counting().counting_kernels() as forward:
            out = module(x)
        with _Counting().counting_kernels() as backward:
            torch.autograd.grad(out, [x, *module.parameters()], torch.empty_like(out))
    return forward.count, backward.count


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Let the Triton kernels take tensors without data: their operators have fake versions."""
    can_run = mock.patch.multiple(triton, cannot_run=_no_reason, by_name_only=_no_reason)
    devices = mock.patch.object(gpu_layer, 'DEVICES', {'meta'})
    backends = OPERATORS['neighborhood_attention']
    backend = backends['triton']
    backends['triton'] = replace(backend, cannot_run=_no_reason, by_name_only=_no_reason)
    mode = size_cache._get_current_dispatch_mode
    size_cache._get_current_dispatch_mode = lambda: None  # use the cache while counting
    try:
        with can_run, devices:
            yield
    finally:
        backends['triton'] = backend
        size_cache._get_current_dispatch_mode = mode


def _no_reason(*_: Any) -> None:
    """Nothing speaks against running."""


def candidates(channels: int) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Yield what is counted, with its name."""
    yield 'ACmix, one operator', partial(ACmix, channels, channels)
    for attention, convolution in (
        ('tiled', 'composed'), ('triton', 'composed'), ('triton', 'dense')
    ):  # fmt: skip
        backends = dict(neighborhood_attention=attention, shift_conv=convolution)
        name = f'ACmix, {attention}, {convolution}'
        yield name, partial(_layer, channels, backends)
    yield 'conv3x3', partial(nn.Conv2d, channels, channels, 3, padding=1, bias=False)


def _layer(channels: int, backends: dict[str, str]) -> nn.Module:
    return UsingBackends(ACmix(channels, channels), **backends)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--operators', action='store_true', help='list the kernels by operator')
    args = parser.parse_args(argv)
    rows, kernels = [], []
    for channels, height, width in (STAGES[0], STAGES[-1]):
        for name, make in candidates(channels):
            forward, backward = count_step(make, (1, channels, height, width))
            rows.append(
                [
                    f'{channels}@{height}x{width}',
                    name,
                    f'{forward.kernels.total()} + {backward.kernels.total()}',
                    f'{forward.megabytes:.0f} + {backward.megabytes:.0f}',
                ]
            )
            kernels.append((name, forward.kernels, backward.kernels))
    print(table(('layer', 'backends', 'kernels, forward + backward', 'MB in float32'), rows))
    if args.operators:
        for name, *counts in kernels:
            print(name, *(dict(count) for count in counts), sep='\n  ')


if __name__ == '__main__':
    main()
