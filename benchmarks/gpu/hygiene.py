# SPDX-License-Identifier: Apache-2.0
"""Launches, hidden synchronization, determinism, precision of sums, large maps, memory errors."""

import copy
import os
import shutil
import subprocess
import sys
from functools import partial
from typing import Any

import torch
from torch import nn

from acmix_mm.layers import ACmix

from ..cases import BOTH
from .checks import made_layers
from .device import Measurements, Record, Setting, Step
from .timings import attend, layer_candidates


def profile(setting: Setting) -> Measurements:
    """List the kernels of a training step of a layer."""
    for (c, h, w), kind in (
        (s, k) for s in (setting.stages[0], setting.stages[-1]) for k in ('tf32', 'fp16')
    ):
        for name, module in layer_candidates(setting, c):
            arguments = (module, (1, c, h, w), kind, 'NCHW', BOTH)

            def measure(arguments: Any = arguments) -> Record:
                return _top_kernels(setting, setting.layer_step(*arguments))

            yield dict(kind='note', case=f'{c}@{h}x{w} {kind}', name=name), measure


def _top_kernels(setting: Setting, step: Step) -> Record:
    setting.timed(step)
    activity, time = torch.profiler.ProfilerActivity.CUDA, 'self_device_time_total'
    if setting.dry:
        activity, time = torch.profiler.ProfilerActivity.CPU, 'self_cpu_time_total'
    with torch.profiler.profile(activities=[activity]) as found:
        step()
        if not setting.dry:
            torch.cuda.synchronize()
    rows = [(getattr(e, time), e.count, e.key[:80]) for e in found.key_averages()]
    rows = sorted((row for row in rows if row[0] > 0), reverse=True)
    return dict(
        kernels=sum(row[1] for row in rows), microseconds=sum(row[0] for row in rows), top=rows[:12]
    )


def hygiene(setting: Setting) -> Measurements:
    """Check what hurts training without making any single result wrong."""
    for name, module, shape in made_layers(setting.window):
        yield _note(name, 'no synchronization'), partial(_unsynchronized, setting, module, shape)
        yield _note(name, 'deterministic'), partial(_deterministic, setting, module, shape)
    for scale in (1, 2**16):
        what = "fp16: alpha's gradient over float64's"
        yield _note(f'gradients times {scale}', what), partial(_alpha, setting, scale)
    for name, module in layer_candidates(setting, 64):

        def launches(module: nn.Module = module) -> Record:
            shape = (1, 64, 8, 8)
            return setting.timed(setting.layer_step(module, shape, 'fp16', 'NCHW', BOTH))

        yield dict(kind='timing', case='1x64@8x8 fp16', name=name, mode=BOTH), launches
    yield _note('more than 2**31 elements', 'automatic'), partial(_large, setting)


def _unsynchronized(setting: Setting, module: nn.Module, shape: tuple[int, ...]) -> Record:
    step = setting.layer_step(module, shape, 'fp16', 'NCHW', BOTH)
    step()
    if not setting.dry:
        torch.cuda.set_sync_debug_mode('error')
    step()
    return dict(ok=True)


def _deterministic(setting: Setting, module: nn.Module, shape: tuple[int, ...]) -> Record:
    torch.use_deterministic_algorithms(True)
    (x,) = setting.random('fp32', shape)
    module = module.to(setting.device)
    first, second = (
        torch.autograd.grad(module(x).square().sum(), [x, *module.parameters()]) for _ in range(2)
    )
    return dict(ok=all(torch.equal(a, b) for a, b in zip(first, second, strict=True)))


def _alpha(setting: Setting, scale: int) -> Record:
    c, h, w = setting.stages[0]
    module = ACmix(c, c, setting.window).to(setting.device)
    (x,) = setting.random('fp32', (1, c, h, w))
    with setting.cast('fp16'):
        out = module(x)
    slope, exact = 0.01 * scale * out.detach().sign(), copy.deepcopy(module).double()
    (half,) = torch.autograd.grad(out, module.mix.alpha, slope)
    (expected,) = torch.autograd.grad(exact(x.double()), exact.mix.alpha, slope.double())
    return dict(ok=bool(half.isfinite().all()), ratio=(half / expected).item())


def _large(setting: Setting) -> Record:
    """Attention of a map of more than 2^31 elements, whose last corner is compared."""
    side, crop, reach = (20, 9, 3) if setting.dry else (2912, 64, 6)
    with torch.no_grad():
        shape = (1, 16, 16, side, side)
        qkv = [torch.randn(shape, device=setting.device, dtype=torch.float16) for _ in range(3)]
        out = attend(qkv, setting.window, None)[..., -crop:, -crop:].double()
        near = [t[..., -crop - reach :, -crop - reach :].double() for t in qkv]
        expected = attend(near, setting.window, 'reference')[..., -crop:, -crop:]
    off = ((out - expected).norm() / expected.norm()).item()
    return dict(ok=off < 1e-2, off=off, elements=qkv[0].numel())


def sanitizer(setting: Setting) -> Measurements:
    """Run the part ``tiny`` under NVIDIA's checkers of memory accesses and races."""
    program = shutil.which('compute-sanitizer', path=f'{os.environ["PATH"]}:/usr/local/cuda/bin')
    part = [sys.executable, '-m', 'benchmarks.check_gpu', '--run', 'tiny', '--records', os.devnull]
    for tool in ('memcheck', 'racecheck'):

        def check(tool: str = tool) -> Record:
            if setting.dry:
                return dict(ok=True, says='not run in a dry run')
            if program is None:
                return dict(ok=False, says='compute-sanitizer is not installed')
            options = ['--tool', tool, '--error-exitcode', '9', '--print-limit', '5']
            found = subprocess.run(
                [program, *options, *part], capture_output=True, text=True, check=False
            )
            says = [line for line in found.stdout.splitlines() if line.startswith('====')][-6:]
            return dict(ok=not found.returncode, says=says)

        yield _note('tiny', tool), check


def _note(case: str, name: str) -> Record:
    return dict(kind='note', case=case, name=name)
