# SPDX-License-Identifier: Apache-2.0
"""How candidates are measured.

Times are measured in one process, which runs the candidates in turn. Peak memory and the times over
the size of the map are measured in fresh processes, which run this program with hidden options.
"""

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

from .cases import (
    BOTH,
    BUILDERS,
    MATMUL_FLOPS,
    MATMUL_SIDE,
    ROOFLINE,
    Case,
    Comparison,
    layer_case,
)

ROOT = Path(__file__).resolve().parents[1]

# Settings of glibc: keep large blocks for reuse instead of returning them to the system.
KEEP_MEMORY = dict(MALLOC_MMAP_THRESHOLD_='4294967296', MALLOC_TRIM_THRESHOLD_='8589934592')


@dataclass(frozen=True)
class Measurement:
    """The times of a candidate and of the baseline in one mode.

    Attributes:
        comparison: Name of the comparison.
        mode: ``FORWARD`` or ``BOTH``.
        candidate: Name of the candidate.
        baseline: Name of the candidate that it is compared with.
        milliseconds: Median time of the candidate.
        baseline_milliseconds: Median time of the baseline.
        ratio: Median over the rounds of the candidate's time divided by the baseline's.
        quartiles: Lower and upper quartile of these ratios.
    """

    comparison: str
    mode: str
    candidate: str
    baseline: str
    milliseconds: float
    baseline_milliseconds: float
    ratio: float
    quartiles: tuple[float, float]


def tensors_of(output: Any) -> list[Tensor]:
    """Return a list of the tensors that a module returned, be it one tensor or several."""
    return [output] if isinstance(output, Tensor) else list(output)


def run(module: nn.Module, x: Tensor, mode: str) -> None:
    """Run one forward pass, followed by a backward pass if the mode is ``BOTH``."""
    with torch.set_grad_enabled(mode == BOTH):
        outputs = tensors_of(module(x))
        if mode == BOTH:
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
            module.zero_grad()
            x.grad = None


def prepare(case: Case, mode: str) -> Callable[[], None]:
    """Return a function that runs a case: inference in eval mode, or a step in training mode."""
    module, shape = case
    module.train(mode == BOTH)
    x = torch.randn(shape).requires_grad_(mode == BOTH)
    return partial(run, module, x, mode)


def time_in_turn(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Measure how many seconds each function takes in each round.

    Each function first runs once without being timed. Every other round runs the functions in
    reverse order.
    """
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
    """Time the candidates of a comparison in each of its modes; the first one is the baseline."""
    measured = []
    for mode in comparison.modes:
        functions = {name: prepare(comparison.build(name), mode) for name in comparison.candidates}
        seconds = time_in_turn(functions, rounds)
        baseline, *others = comparison.candidates
        for name in others:
            pairs = zip(seconds[name], seconds[baseline], strict=True)
            ratios = [time / baseline_time for time, baseline_time in pairs]
            quarters = statistics.quantiles(ratios, n=4, method='inclusive')
            measured.append(
                Measurement(
                    str(comparison),
                    mode,
                    name,
                    baseline,
                    1e3 * statistics.median(seconds[name]),
                    1e3 * statistics.median(seconds[baseline]),
                    statistics.median(ratios),
                    (quarters[0], quarters[2]),
                )
            )
    return measured


def saved_bytes(case: Case) -> tuple[int, int]:
    """Return how many bytes autograd keeps for the backward pass, and how many the input has.

    Storages that several saved tensors share are counted once, and parameters not at all.
    """
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
    """Measure how much memory a training step needs at its peak, in a fresh process."""
    return run_fresh('--peak-of', [comparison.suite, candidate, *comparison.arguments])


def run_fresh(option: str, arguments: list, **environment: str) -> Any:
    """Run this program in a fresh process.

    Args:
        option: Hidden option of ``run.py`` that says what to measure.
        arguments: Value of the option.
        **environment: Environment variables to set.

    Returns:
        The JSON value on the last line that the process printed.
    """
    command = [sys.executable, '-m', 'benchmarks.run', option, json.dumps(arguments)]
    command += ['--threads', str(torch.get_num_threads())]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


def print_peak_bytes(suite: str, candidate: str, *arguments: Any) -> None:
    """Print how far a training step of a candidate raises the memory of this process."""
    module, shape = BUILDERS[suite](candidate, *arguments)
    # Warm up, because libraries load code and create threads on first use. The map is as small as
    # possible (PVT needs 64 pixels), so that it leaves little free memory for the measured step.
    side = 64 if suite in ('backbone', 'detector') else 8
    prepare((module, (*shape[:2], side, side)), BOTH)()
    function = prepare((module, shape), BOTH)
    Path('/proc/self/clear_refs').write_text('5')  # resets the peak
    idle = process_bytes('VmRSS')
    function()
    # A step on small maps may fit into memory that is already free. One page is the smallest
    # figure, so that ratios stay finite.
    print(max(process_bytes('VmHWM') - idle, resource.getpagesize()))


def process_bytes(entry: str) -> int:
    """Return an entry of ``/proc/self/status``, such as ``VmRSS``, in bytes."""
    status = Path('/proc/self/status').read_text()
    return 1024 * int(status.split(f'{entry}:')[1].split()[0])


def measure_memory(comparison: Comparison, known: list[dict]) -> list[dict]:
    """Measure saved bytes and peak memory of candidates.

    Args:
        comparison: The comparison whose candidates are measured.
        known: Rows of earlier calls. Candidates that they contain are not measured again.
    """
    rows = []
    done = {row['candidate'] for row in known if row['comparison'] == str(comparison)}
    for name in comparison.candidates:
        if name == ROOFLINE or name in done:
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
    """Measure a training step of an ACmix layer with 64 channels on square maps.

    Args:
        sides: Sides of the maps, in pixels.
        rounds: Number of rounds.

    Returns:
        For each side the milliseconds, those with ``KEEP_MEMORY``, and the peak memory.
    """
    times = run_fresh('--scaling-of', [sides, rounds])
    kept = run_fresh('--scaling-of', [sides, rounds], **KEEP_MEMORY)
    return [
        dict(
            side=side,
            milliseconds=times[str(side)],
            milliseconds_kept=kept[str(side)],
            peak_bytes=peak_bytes(Comparison('layer', (64, side, side), ()), 'acmix'),
        )
        for side in sides
    ]


def print_scaling_times(sides: Sequence[int], rounds: int) -> None:
    """Print the median milliseconds of a training step for each side of the map."""
    functions = {str(side): prepare(layer_case('acmix', 64, side, side), BOTH) for side in sides}
    seconds = time_in_turn(functions, rounds)
    print(json.dumps({name: 1e3 * statistics.median(times) for name, times in seconds.items()}))


def fitted_exponent(rows: list[dict], key: str) -> float:
    """Return the exponent b of the power law value = a * pixels^b that fits some rows best.

    Args:
        rows: Dicts with the ``side`` of a square map and measured values.
        key: Key of the value.
    """
    x = [2 * math.log(row['side']) for row in rows]
    y = [math.log(row[key]) for row in rows]
    return statistics.linear_regression(x, y).slope


def roofline(rounds: int) -> dict[str, float]:
    """Measure the speed of this machine: GFLOP/s of a matrix product and GB/s of a copy."""
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
