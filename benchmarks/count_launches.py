# SPDX-License-Identifier: Apache-2.0
"""Count what a training step of a layer asks of a GPU, without one: kernels and bytes.

    python -m benchmarks.count_launches

A step runs on the meta device, where nothing is computed. Every operator that is not a view counts
as one kernel that reads its inputs and writes its outputs once. That is a lower bound: cuDNN and
cuBLAS may launch several.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from acmix_mm.layers import ACmix
from acmix_mm.ops import size_cache
from acmix_mm.ops.backends.registry import OPERATORS
from acmix_mm.runtime.markdown import table

from .cases import STAGES
from .gpu.timings import UsingBackends

# Operators that allocate memory or look at tensors differently, without a kernel.
_FREE = (
    'empty', 'empty_like', 'new_empty', 'empty_strided', 'detach', 'alias', '_unsafe_view',
    '_reshape_alias', 'lift_fresh', 'promote_types',
)  # fmt: skip


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
        out = func(*args, **kwargs or {})
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _FREE:
            tensors = [t for t in tree_flatten((args, kwargs, out))[0] if isinstance(t, Tensor)]
            self.count.kernels[name] += 1
            self.count.megabytes += 1e-6 * sum(map(_bytes, tensors))
        return out


def _bytes(tensor: Tensor) -> int:
    """Bytes of a tensor, of which expanded axes are read once."""
    sizes = (n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return tensor.element_size() * torch.Size(sizes).numel()


def count_step(
    make: Callable[[], nn.Module], shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> tuple[Count, Count]:
    """Count the forward and the backward pass of a module on one input."""
    with torch.device('meta'), _as_on_a_gpu():
        module, x = make().to(dtype), torch.empty(shape, dtype=dtype).requires_grad_()
        module(x)  # fills the cache of what depends on the size alone
        with _Counting() as forward:
            out = module(x)
        with _Counting() as backward:
            torch.autograd.grad(out, [x, *module.parameters()], torch.empty_like(out))
    return forward.count, backward.count


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Let the Triton kernels take tensors without data: their operators have fake versions."""
    backends = OPERATORS['neighborhood_attention']
    backend = backends['triton']
    backends['triton'] = replace(backend, cannot_run=lambda *_: None, by_name_only=lambda *_: None)
    mode = size_cache._get_current_dispatch_mode
    size_cache._get_current_dispatch_mode = lambda: None  # use the cache while counting
    try:
        yield
    finally:
        backends['triton'] = backend
        size_cache._get_current_dispatch_mode = mode


def candidates(channels: int) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Yield what is counted, with its name."""
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
