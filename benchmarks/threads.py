# SPDX-License-Identifier: Apache-2.0
"""Run the C++ kernels on several threads, from several Python threads at once.

    python -m benchmarks.threads [--rounds 60] [--threads 4] [--callers 3] [--seed 0]

Each round draws a geometry. Every kernel must give, to the bit, what it gives on one thread. Under
ThreadSanitizer (`bash benchmarks/sanitize.sh thread`), which ends at the first race, the
rounds are few.
"""

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

import acmix_mm.ops  # noqa: F401  loads the kernels

Call = Callable[[], list[Tensor]]


def calls(generator: torch.Generator) -> list[Call]:
    """Return a call of each kernel with random arguments of a random geometry."""
    ops = torch.ops.acmix_mm

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    dtype = (torch.float32, torch.float64)[draw(0, 1)]
    batch, groups, channels, height, width = (draw(1, n) for n in (3, 3, 9, 40, 40))
    size, stride, dilation = 2 * draw(0, 3) + 1, draw(1, 3), draw(1, 3)
    window = (size, stride, dilation)
    results = (-(-height // stride), -(-width // stride))

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator)

    k, v = (random(batch, groups, channels, height, width) for _ in range(2))
    q, grad = (random(batch, groups, channels, *results) for _ in range(2))
    _, lse = ops.neighborhood_attention_forward(q, k, v, *window, 0.5)
    maps = [random(batch, draw(1, 4), groups, height, width) for _ in range(2)]
    weight = random(4 * groups, sum(part.shape[1] for part in maps), size, size)
    conv_grad = random(batch, 4 * groups, *results)
    by_line = random(batch, height, width, draw(1, 4), 16 * groups).permute(0, 3, 4, 1, 2)
    line_weight = random(32 * groups, by_line.shape[1], size, size)
    line_grad = random(batch, *results, 32 * groups).permute(0, 3, 1, 2)
    x, pointwise = random(batch, channels, height, width), random(6, channels)
    grads = [random(batch, 2, height, width) for _ in range(3)]
    heads, depth = draw(1, 3), draw(1, 5)
    layer = (
        x,
        random(3 * heads * depth, channels),
        random(3 * heads * depth),
        random(depth, height, width),
        random(heads * depth, 3 * heads, 3, 3),
        random(1),
        *(*window, 0.5),
    )
    side, rows, columns = draw(1, 8), draw(1, 5), draw(1, 5)
    qkv = random(batch, rows * side, columns * side, 3, heads, depth)
    windows = (
        qkv,
        random(heads, side**2, side**2),
        random(draw(1, rows), side, side),
        random(draw(1, columns), side, side),
    )
    window_grad, window_lse = ops.window_attention_forward(*windows, side, 0.5)
    layer_grad, layer_lse = ops.acmix_layer_forward(*layer)
    return [
        partial(ops.neighborhood_attention_forward, q, k, v, *window, 0.5),
        partial(ops.neighborhood_attention_backward, grad, q, k, v, lse, *window, 0.5),
        lambda: [ops.shift_conv_forward(maps, weight, stride, dilation)],
        lambda: _flat(ops.shift_conv_backward(conv_grad, maps, weight, stride, dilation)),
        lambda: [ops.shift_conv_forward([by_line], line_weight, stride, dilation)],
        lambda: _flat(ops.shift_conv_backward(line_grad, [by_line], line_weight, stride, dilation)),
        partial(ops.pointwise_conv_forward, x, pointwise, random(6), 3),
        partial(ops.pointwise_conv_backward, grads, x, pointwise),
        partial(ops.window_attention_forward, *windows, side, 0.5),
        partial(ops.window_attention_backward, window_grad, *windows, window_lse, side, 0.5),
        partial(ops.acmix_layer_forward, *layer),
        partial(ops.acmix_layer_backward, layer_grad, *layer[:6], layer_lse, *layer[6:]),
    ]


def _flat(results: tuple[list[Tensor], Tensor]) -> list[Tensor]:
    return [*results[0], results[1]]


def main(argv: list[str] | None = None) -> None:
    """Compare all rounds, and print how many calls there were."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    for name, default in dict(rounds=60, threads=4, callers=3, seed=0).items():
        parser.add_argument(f'--{name}', type=int, default=default)
    args = parser.parse_args(argv)
    generator = torch.Generator().manual_seed(args.seed)
    compared = different = 0
    with ThreadPoolExecutor(args.callers) as pool:
        for _ in range(args.rounds):
            torch.set_num_threads(1)
            kernels = calls(generator)
            expected = [list(kernel()) for kernel in kernels]
            torch.set_num_threads(args.threads)
            # Each caller sets the number for itself: it belongs to a thread.
            results = pool.map(partial(_run, args.threads), kernels * args.callers)
            for result, single in zip(results, expected * args.callers, strict=True):
                compared += 1
                different += not all(map(torch.equal, result, single))
    print(f'{compared} calls on {args.threads} threads, {different} differ from one thread')
    if different:
        sys.exit(1)


def _run(threads: int, kernel: Call) -> list[Tensor]:
    torch.set_num_threads(threads)
    return list(kernel())


if __name__ == '__main__':
    main()
