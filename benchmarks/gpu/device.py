# SPDX-License-Identifier: Apache-2.0
"""What all parts share: sizes, tensors, times and errors."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..cases import BOTH, FORWARD, STAGES
from ..measure import tensors_of

MODES = (FORWARD, BOTH)
DTYPES = dict(
    fp64=torch.float64,
    fp32=torch.float32,
    tf32=torch.float32,
    fp16=torch.float16,
    bf16=torch.bfloat16,
)
# Largest relative error. That of half precision is its own rounding, a few times over.
TOLERANCES = dict(fp64=1e-10, fp32=2e-5, fp16=6e-3, bf16=4e-2)
FORMS = dict(NCHW=torch.contiguous_format, NHWC=torch.channels_last)

Step = Callable[[], None]
Record = dict[str, Any]
# What a part yields: what is measured, and the function that measures it.
Measurements = Iterator[tuple[Record, Callable[[], Record]]]


@dataclass(frozen=True)
class Setting:
    """Where a part runs and how large its inputs are.

    Attributes:
        dry: Whether this is a dry run: on the CPU, with tiny inputs.
    """

    dry: bool = False

    @property
    def device(self) -> str:
        """Type of the device."""
        return 'cpu' if self.dry else 'cuda'

    @property
    def stages(self) -> Sequence[tuple[int, int, int]]:
        """Channels, height and width of the middle layers of ResNet-50's stages."""
        return ((16, 6, 7), (32, 5, 4)) if self.dry else STAGES

    @property
    def window(self) -> int:
        """Side of the attention window in pixels."""
        return 3 if self.dry else 7

    @property
    def image(self) -> tuple[int, int]:
        """Height and width of the images that backbones get."""
        return (64, 96) if self.dry else (800, 1344)

    def random(self, kind: str, *shapes: Sequence[int]) -> list[Tensor]:
        """Make random tensors that require gradients, in the dtype of a kind of arithmetic."""
        return [
            torch.randn(shape, device=self.device).to(DTYPES[kind]).requires_grad_()
            for shape in shapes
        ]

    def cast(self, kind: str) -> AbstractContextManager:
        """Context of autocast for half precision, and one without effect for other arithmetic."""
        half = kind in ('fp16', 'bf16')
        return torch.autocast(self.device, DTYPES[kind] if half else None, enabled=half)

    def projections(self, shape: Sequence[int], kind: str, form: str = 'NCHW') -> list[Tensor]:
        """Make q, k and v ``(B, N, D, H, W)`` as a layer does: as views of one tensor."""
        batch_size, heads, channels, *size = shape
        (qkv,) = self.random(kind, (batch_size, 3 * heads * channels, *size))
        parts = qkv.contiguous(memory_format=FORMS[form]).chunk(3, 1)
        return [part.unflatten(1, (heads, channels)).detach().requires_grad_() for part in parts]

    def layer_step(
        self, module: nn.Module, shape: Sequence[int], kind: str, form: str, mode: str
    ) -> Step:
        """Return a training step, or a forward pass, of a module on a random input."""
        use_tf32(kind != 'fp32')
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()  # as detectors are trained
        # The annotations of torch lack this overload of `to`.
        module = module.to(self.device).to(memory_format=FORMS[form])  # type: ignore[call-overload]
        x = self.random(kind, shape)[0].detach().contiguous(memory_format=FORMS[form])
        x.requires_grad_()
        return self.step(lambda: module(x), [x, *module.parameters()], mode, kind)

    def step(
        self, function: Callable[[], Any], inputs: Sequence[Tensor], mode: str, kind: str = 'fp32'
    ) -> Step:
        """Return one pass as a function, with gradients of the inputs if the mode has them."""
        slopes: list[Tensor] = []

        def run() -> None:
            with torch.set_grad_enabled(mode == BOTH), self.cast(kind):
                outs = tensors_of(function())
            if mode == BOTH:
                slopes.extend(torch.randn_like(out) for out in outs[len(slopes) :])
                torch.autograd.grad(outs, inputs, slopes, allow_unused=True)

        return run

    def timed(self, run: Step, gaps: bool = False) -> Record:
        """Measure the median times of a step and its peak memory.

        Args:
            run: The step.
            gaps: Whether the time in which the GPU waits for the CPU counts.

        Returns:
            dict: ``gpu_ms``, between events of the GPU, ``cpu_ms``, until the step has been
            launched, ``peak_mib`` above the memory that was held before, and the ``quartiles`` of
            ``gpu_ms``. In a dry run all times are those of the CPU.
        """
        run()
        run()
        if self.dry:
            begun = time.perf_counter()
            run()
            milliseconds = 1e3 * (time.perf_counter() - begun)
            return dict(gpu_ms=milliseconds, cpu_ms=milliseconds, peak_mib=0.0)
        launch, total, peak = _once(run)
        flush = torch.empty(2**28, dtype=torch.int8, device=self.device)  # more than the L2 cache
        gpu, cpu = [], []
        for _ in range(int(min(40, max(5, 0.12 / total)))):
            flush.zero_()
            if not gaps:  # let the launches queue up behind a kernel that sleeps
                cycles_per_second = 2e9
                torch.cuda._sleep(int(min(1.5 * launch + 1e-4, 0.3) * cycles_per_second))
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            begun = time.perf_counter()
            run()
            cpu.append(1e3 * (time.perf_counter() - begun))
            last.record()
            last.synchronize()
            gpu.append(first.elapsed_time(last))
        return dict(
            gpu_ms=statistics.median(gpu),
            cpu_ms=statistics.median(cpu),
            peak_mib=peak / 2**20,
            quartiles=statistics.quantiles(gpu, n=4)[::2],
        )


def _once(run: Step) -> tuple[float, float, int]:
    """Run a step: the seconds to launch and to end it, and the bytes that it needs."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, begun = torch.cuda.memory_allocated(), time.perf_counter()
    run()
    launch = time.perf_counter() - begun
    torch.cuda.synchronize()
    total = time.perf_counter() - begun
    return launch, total, torch.cuda.max_memory_allocated() - before


def use_tf32(on: bool) -> None:
    """Let matrix products and convolutions of float32 round their inputs to TF32, or not."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


def errors(
    function: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    tolerance: float,
    doubles: Sequence[Tensor] | None = None,
) -> Record:
    """Compare a function and its gradients with a definition in float64.

    Args:
        function: Takes the inputs.
        definition: Takes the doubles.
        inputs: Tensors that require gradients.
        tolerance: Largest error, ``||a - b|| / ||b||``.
        doubles: Inputs of the definition; by default those of the function in float64.

    Returns:
        dict: ``out`` and ``grads``, the errors of the result and of the worst gradient, and ``ok``.
    """
    doubles = doubles or [tensor.detach().double().requires_grad_() for tensor in inputs]
    out, expected = function(*inputs), definition(*doubles)
    slope = torch.randn_like(expected).to(out.dtype)
    grads = torch.autograd.grad(out, inputs, slope)
    expected_grads = torch.autograd.grad(expected, doubles, slope.double())
    # Some gradients are 0 but for rounding, such as that of a summand common to all logits.
    least = 0.02 * max(grad.norm().item() for grad in expected_grads) + 1e-9
    off = [
        ((ours.double() - exact).norm() / max(exact.norm().item(), least)).item()
        for ours, exact in zip((out, *grads), (expected, *expected_grads), strict=True)
    ]
    return dict(out=off[0], grads=max(off[1:]), ok=all(value < tolerance for value in off))
