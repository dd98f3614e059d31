# SPDX-License-Identifier: Apache-2.0
"""Count the machine instructions of the Triton kernels, for GPUs that need not be there.

    python -m benchmarks.count_sass [--capabilities 80 90] [--dtypes float16 float32 tf32]
                                    [--depths 16 32 64 128]

The kernels of neighborhood attention with windows of 7x7 pixels, alone and as parts of a layer that
is one operator, are compiled with the ``ptxas`` that Triton ships, and disassembled. The command
prints a table of

* the registers of a thread, and the bytes of stack to which it spills more of them,
* the shared memory of a tile,
* instructions of all threads of a tile far from the borders, for each of its *useful logits*: 49
  for each of 64 pixels,
* loads of 2 bytes, which take as many instructions as loads of 16 bytes,
* variants of a kernel that are compiled for images of 20 sizes.

These are costs and not times, which can only be measured on a GPU.
"""

import argparse
import os
import re
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

# Read when Triton is imported.
os.environ['TRITON_INTERPRET'] = '0'

import torch
import triton
from triton.backends.compiler import GPUTarget

from acmix_mm.layers import ACmix
from acmix_mm.ops.backends import triton_kernels, triton_layer
from acmix_mm.runtime.markdown import table

KERNEL_SIZE, HEADS, PIXELS_OF_TILE = 7, 4, 64
SIZES = [(height, height + 8) for height in range(16, 36)]  # odd, and multiples of 8 and 16
# The precision of float32 is that of torch's matrix products: TF32 if it is allowed.
DTYPES = dict(
    float16=(torch.float16, 'highest'),
    bfloat16=(torch.bfloat16, 'highest'),
    float32=(torch.float32, 'highest'),
    tf32=(torch.float32, 'high'),
)
HEADER = (
    'GPU', 'dtype', 'memory format', 'D', 'kernel', 'registers', 'bytes spilled',
    'shared KB', 'instructions per useful logit', '2-byte loads', 'variants',
)  # fmt: skip


class AbsentGPU:
    """What Triton asks the driver of a GPU when it compiles.

    Args:
        capability: Compute capability of the GPU, times 10.
    """

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget('cuda', capability, 32)

    def get_current_target(self) -> GPUTarget:
        """Return what to compile for."""
        return self.target

    def get_current_device(self) -> int:
        """Return the key under which Triton keeps what it has compiled."""
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        """Return 0, because nothing runs."""
        return 0


class Kernel(NamedTuple):
    """A compiled kernel.

    Attributes:
        name: Name of the kernel.
        compiled: What Triton returns.
        blocks: How many blocks of pixels a strip meets, see ``triton_kernels``; 0 for kernels that
            are not of attention.
    """

    name: str
    compiled: Any
    blocks: int


def compile_attention(
    size: tuple[int, int], depth: int, dtype: torch.dtype, memory_format: torch.memory_format
) -> list[Kernel]:
    """Compile the kernels of attention alone, forward and backward.

    Args:
        size: Height and width of the image in pixels.
        depth: Channels D of a head.
        dtype: Data type of the maps.
        memory_format: Memory format of the projections.
    """
    with _compiling() as kernels:
        projection = torch.empty(1, 3 * HEADS * depth, *size, dtype=dtype)
        chunks = projection.to(memory_format=memory_format).chunk(3, 1)
        q, k, v = (triton_kernels.arrange(maps.unflatten(1, (HEADS, depth))) for maps in chunks)
        window = (KERNEL_SIZE, 1, 1, depth**-0.5)
        out, lse = triton_kernels.run_forward(q, k, v, *window)
        triton_kernels.run_backward(out, q, k, v, out, lse, *window)
    return kernels


def compile_layer(
    size: tuple[int, int], depth: int, dtype: torch.dtype, memory_format: torch.memory_format
) -> list[Kernel]:
    """Compile all kernels of a layer that is one operator, forward and backward.

    Args:
        size: Height and width of the image in pixels.
        depth: Channels D of a head.
        dtype: Data type of the input; the weights are in float32.
        memory_format: Memory format of the input.
    """
    with _compiling() as kernels:
        layer = ACmix(HEADS * depth, HEADS * depth, KERNEL_SIZE, HEADS)
        x = torch.empty(1, HEADS * depth, *size, dtype=dtype).to(memory_format=memory_format)
        geometry: list[Any] = [KERNEL_SIZE, 1, 1]
        tensors: list[Any] = [x, *layer.weights_of_one_operator()]
        out, *kept = triton_layer.run_forward(*[*tensors, *geometry, True])
        triton_layer.run_backward(out, *[*tensors, *kept, *geometry, True, True])
    return [kernel._replace(name=f'{kernel.name}, layer') for kernel in kernels]


@contextmanager
def _compiling() -> Iterator[list[Kernel]]:
    """Context in which Triton kernels are compiled and not run."""
    kernels: list[Kernel] = []

    def compile_only(function: Any, *args: Any, warmup: bool, **kwargs: Any) -> None:
        compiled = run(function, *args, warmup=True, **kwargs)
        kernels.append(Kernel(function.__name__.strip('_'), compiled, _count_blocks(kwargs)))

    run = triton.JITFunction.run
    with (
        torch.device('meta'),
        mock.patch.object(triton.JITFunction, 'run', compile_only),
        mock.patch.object(triton_kernels, 'has_data', return_value=True),
        mock.patch.object(triton_layer, 'has_data', return_value=True),
        mock.patch.object(torch.nn.functional, 'conv2d', _convolve),
    ):
        yield kernels


def _count_blocks(constants: dict[str, Any]) -> int:
    if 'SPAN_ROWS' not in constants:
        return 0
    rows, columns = (
        -(-constants[f'SPAN_{axis}'] // constants[f'BLOCK_{axis}']) for axis in ('ROWS', 'COLUMNS')
    )
    return rows * columns


def _convolve(x: torch.Tensor, *args: Any) -> torch.Tensor:
    """Convolve in the memory format of x, as on a GPU."""
    channels_last = x.stride(1) == 1
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.conv2d(x, *args).contiguous(memory_format=memory_format)


class Code:
    """The machine code of a kernel.

    Args:
        usage: What ``cuobjdump -res-usage`` prints.
        listing: What ``nvdisasm -c`` prints.

    Attributes:
        registers: Number of registers of a thread.
        spilled: Bytes of stack of a thread.
        instructions: The instructions, one string each.
    """

    def __init__(self, usage: str, listing: str) -> None:
        self.registers, self.spilled = map(int, re.findall(r'REG:(\d+) STACK:(\d+)', usage)[0])
        self.instructions: list[str] = []
        labels = {}
        for line in listing.splitlines():
            if label := re.match(r'\s*(\.L_\w+):', line):
                labels[label[1]] = len(self.instructions)
            elif instruction := re.match(r'\s+/\*[0-9a-f]+\*/\s+(.*?);', line):
                self.instructions.append(instruction[1])
        self._next = [list(_next(i, text, labels)) for i, text in enumerate(self.instructions)]

    def count_executed(self, blocks: int) -> int:
        """Count the instructions on the shortest way through the kernel.

        That is the way of tiles far from all borders. Every loop is taken, an innermost one
        ``blocks`` times, and all others once.
        """
        loops = [
            (start, end)
            for end, targets in enumerate(self._next)
            for start in targets
            # Otherwise it is a jump back from a part that the compiler moved to the end.
            if start < end and not self._steps(0, end, without=start)
        ]
        innermost = [
            (start, end)
            for start, end in loops
            if not any((start, end) != (i, j) and start <= i and j <= end for i, j in loops)
        ]
        ends = sorted(end for _, end in loops)
        count = 1 + sum(map(self._steps, [0, *ends], [*ends, None]))
        return count + sum((blocks - 1) * (1 + self._steps(*loop)) for loop in innermost)

    def _steps(self, start: int, end: int | None, without: int | None = None) -> int:
        """Steps from one instruction to another, or to the end; 0 if there is no way."""
        steps, queue = {start: 0}, deque([start])
        while queue:
            i = queue.popleft()
            if i == end or (end is None and not self._next[i]):
                return steps[i]
            for j in self._next[i]:
                if j not in steps and j != without:
                    steps[j] = steps[i] + 1
                    queue.append(j)
        return 0


def disassemble(cubin: bytes) -> Code:
    """Read the machine code of a kernel, a file of NVIDIA's format."""
    tools = triton.knobs.nvidia
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(cubin)
        file.flush()
        commands = [
            [tools.cuobjdump.path, '-res-usage', file.name],
            [tools.nvdisasm.path, '-c', file.name],
        ]
        outputs = [subprocess.run(c, check=True, capture_output=True, text=True) for c in commands]
        return Code(*(output.stdout for output in outputs))


def _next(i: int, instruction: str, labels: dict[str, int]) -> Iterator[int]:
    """The instructions that may follow an instruction."""
    jump = re.search(r'\bBRA\b.*`\((\.L_\w+)\)', instruction)
    if jump:
        yield labels[jump[1]]
    conditional = instruction.startswith('@') or re.search(r'\bBRA\S* !?U?P', instruction)
    if conditional or not (jump or 'EXIT' in instruction):
        yield i + 1


def rows(capability: int, dtype: str, memory_format: str, depth: int) -> Iterator[tuple[str, ...]]:
    """Yield a row of the table for each kernel of attention.

    Args:
        capability: Compute capability of the GPU, times 10.
        dtype: A key of ``DTYPES``.
        memory_format: ``'contiguous_format'`` or ``'channels_last'``.
        depth: Channels D of a head.
    """
    data_type, precision = DTYPES[dtype]
    torch.set_float32_matmul_precision(precision)
    triton.runtime.driver.set_active(AbsentGPU(capability))
    case = depth, data_type, getattr(torch, memory_format)
    of_sizes = [[*compile_attention(size, *case), *compile_layer(size, *case)] for size in SIZES]
    for same in zip(*of_sizes, strict=True):
        name, compiled, blocks = same[0]
        if not blocks:
            continue
        code = disassemble(compiled.asm['cubin'])
        threads = 32 * compiled.metadata.num_warps
        executed = threads * code.count_executed(blocks) / (PIXELS_OF_TILE * KERNEL_SIZE**2)
        short = sum('LDG' in text and 'U16' in text for text in code.instructions)
        variants = len({kernel.compiled.hash for kernel in same})
        shared = compiled.metadata.shared // 1024
        numbers = (code.registers, code.spilled, shared, round(executed), short, variants)
        yield (f'sm_{capability}', dtype, memory_format, str(depth), name, *map(str, numbers))


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--capabilities', type=int, nargs='+', default=[80, 90])
    parser.add_argument('--dtypes', nargs='+', default=['float16', 'float32', 'tf32'])
    parser.add_argument('--depths', type=int, nargs='+', default=[16, 32, 64, 128])
    args = parser.parse_args(argv)
    lines = [
        row
        for capability in args.capabilities
        for dtype in args.dtypes
        for memory_format in ('contiguous_format', 'channels_last')
        for depth in args.depths
        for row in rows(capability, dtype, memory_format, depth)
    ]
    print(table(HEADER, lines), end='')


if __name__ == '__main__':
    main()
