# SPDX-License-Identifier: Apache-2.0
"""How candidates are measured: in turn in one process, peak memory in a fresh process."""

import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .cases import BOTH, BUILDERS, MATMUL_FLOPS, MATMUL_SIDE, Case, Comparison, layer_case

# Settings of glibc: keep large blocks for reuse instead of returning them to the system.
KEEP_MEMORY = dict(MALLOC_MMAP_THRESHOLD_='4294967296', MALLOC_TRIM_THRESHOLD_='8589934592')
# This program in a fresh process, see the hidden options of run.py.
FRESH_PROCESS = (sys.executable, '-m', 'benchmarks.run')


@dataclass(frozen=True)
class Measurement:
    """One candidate in one mode.

    Attributes:
        comparison: Name of the comparison.
        mode: Forward, or forward and backward.
        candidate: Name of the candidate.
        milliseconds: Median time.
        ratio: Median of its time over the first candidate's in the same round.
        quartiles: Lower and upper quartile of those ratios.
    """

    comparison: str
    mode: str
    candidate: str
    milliseconds: float
    ratio: float
    quartiles: tuple[float, float]


def tensors_of(output: Any) -> list[Tensor]:
    """Return the outputs of a module that returns one tensor or several."""
    return [output] if isinstance(output, Tensor) else list(output)


def run(module: nn.Module, x: Tensor, mode: str) -> None:
    """Run one forward pass, and in the mode BOTH a backward pass."""
    with torch.set_grad_enabled(mode == BOTH):
        outputs = tensors_of(module(x))
        if mode == BOTH:
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
            module.zero_grad()
            x.grad = None


def prepare(case: Case, mode: str) -> Callable[[], None]:
    """Return the function that is timed: inference in eval mode or a step in training mode."""
    module, shape = case
    module.train(mode == BOTH)
    x = torch.randn(shape).requires_grad_(mode == BOTH)
    return partial(run, module, x, mode)


def time_in_turn(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Measure the seconds of every function in every round, in alternating order."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for index in range(rounds):
        names = list(functions)[:: 1 if index % 2 == 0 else -1]
        for name in names:
            start = time.perf_counter()
            functions[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def compare(comparison: Comparison, rounds: int) -> list[Measurement]:
    """Time all candidates of a comparison in each of its modes."""
    measured = []
    for mode in comparison.modes:
        functions = {name: prepare(comparison.build(name), mode) for name in comparison.candidates}
        seconds = time_in_turn(functions, rounds)
        first = seconds[comparison.candidates[0]]
        for name, times in seconds.items():
            ratios = [time / base for time, base in zip(times, first, strict=True)]
            quarters = statistics.quantiles(ratios, n=4, method='inclusive')
            measured.append(
                Measurement(
                    str(comparison),
                    mode,
                    name,
                    1e3 * statistics.median(times),
                    statistics.median(ratios),
                    (quarters[0], quarters[2]),
                )
            )
    return measured


def saved_bytes(case: Case) -> tuple[int, int]:
    """Return the bytes kept for the backward pass, without parameters, and those of the input."""
    module, shape = case
    x = torch.randn(shape, requires_grad=True)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = tensors_of(module(x))
    assert all(output.requires_grad for output in outputs)
    return sum(storages.values()), x.numel() * x.element_size()


def peak_bytes(comparison: Comparison, candidate: str) -> int:
    """Measure the peak memory of a training step above that of the idle process, in a fresh one."""
    arguments = json.dumps([comparison.suite, candidate, *comparison.arguments])
    command = [*FRESH_PROCESS, '--peak-of', arguments]
    command += ['--threads', str(torch.get_num_threads())]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(result.stdout.splitlines()[-1])


def print_peak_bytes(suite: str, candidate: str, *arguments: Any) -> None:
    """Print the peak memory of a candidate; runs in the fresh process."""
    module, shape = BUILDERS[suite](candidate, *arguments)
    # Libraries load code and create threads on first use. 64 pixels are the smallest side that PVT
    # can reduce; a larger warm-up would leave memory free for the measured run.
    side = 64 if suite in ('backbone', 'detector') else 8
    prepare((module, (*shape[:2], side, side)), BOTH)()
    function = prepare((module, shape), BOTH)
    Path('/proc/self/clear_refs').write_text('5')  # resets the peak
    idle = process_bytes('VmRSS')
    function()
    # At least one page: small maps fit into memory that the libraries have left free.
    print(max(process_bytes('VmHWM') - idle, resource.getpagesize()))


def process_bytes(entry: str) -> int:
    """Return an entry of this process's memory statistics in bytes, as Linux reports it."""
    status = Path('/proc/self/status').read_text()
    return 1024 * int(status.split(f'{entry}:')[1].split()[0])


def measure_memory(comparison: Comparison, known: list[dict]) -> list[dict]:
    """Measure saved bytes and peak memory of the candidates that are not known yet."""
    rows = []
    done = {row['candidate'] for row in known if row['comparison'] == str(comparison)}
    for name in comparison.candidates:
        if name == 'matmul' or name in done:
            continue
        saved, size = saved_bytes(comparison.build(name))
        rows.append(
            dict(
                comparison=str(comparison),
                candidate=name,
                input_bytes=size,
                saved_bytes=saved,
                peak_bytes=peak_bytes(comparison, name),
            )
        )
    return rows


def measure_scaling(sides: Sequence[int], rounds: int) -> list[dict]:
    """Measure time and memory of a training step of ACmix layers (64 channels, square maps)."""
    times = scaling_times(sides, rounds)
    kept = scaling_times(sides, rounds, **KEEP_MEMORY)
    return [
        dict(
            side=side,
            milliseconds=times[str(side)],
            milliseconds_kept=kept[str(side)],
            peak_bytes=peak_bytes(Comparison('layer', (64, side, side), ()), 'acmix'),
        )
        for side in sides
    ]


def scaling_times(sides: Sequence[int], rounds: int, **environment: str) -> dict[str, float]:
    """Measure the median milliseconds for each side, in turn in a fresh process."""
    command = [*FRESH_PROCESS, '--scaling-of', json.dumps([sides, rounds])]
    command += ['--threads', str(torch.get_num_threads())]
    environment = os.environ | environment
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(result.stdout.splitlines()[-1])


def print_scaling_times(sides: Sequence[int], rounds: int) -> None:
    """Print the times for all sides; runs in the fresh process."""
    functions = {str(side): prepare(layer_case('acmix', 64, side, side), BOTH) for side in sides}
    seconds = time_in_turn(functions, rounds)
    print(json.dumps({name: 1e3 * statistics.median(times) for name, times in seconds.items()}))


def fitted_exponent(rows: list[dict], key: str) -> float:
    """Fit the slope of log(value) over log(pixels) by least squares."""
    x = [2 * math.log(row['side']) for row in rows]
    y = [math.log(row[key]) for row in rows]
    return statistics.linear_regression(x, y).slope


def roofline(rounds: int) -> dict[str, float]:
    """Measure what this machine can do: GFLOP/s of a matrix product and GB/s of a copy."""
    a = torch.randn(MATMUL_SIDE, MATMUL_SIDE)
    source = torch.randn(1 << 26)
    target = torch.empty_like(source)
    seconds = time_in_turn(
        dict(matmul=lambda: torch.mm(a, a), copy=lambda: target.copy_(source)), rounds
    )
    return dict(
        matmul_gflops=MATMUL_FLOPS / statistics.median(seconds['matmul']) / 1e9,
        copy_gb_per_s=2 * source.nbytes / statistics.median(seconds['copy']) / 1e9,
    )
