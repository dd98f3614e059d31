# SPDX-License-Identifier: Apache-2.0
"""Times and memory of operators, layers and backbones beside what they are compared with."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix_mm.layers import ACmix
from acmix_mm.ops import available_backends, neighborhood_attention, use_backend
from acmix_mm.registry import MODELS

from ..cases import BOTH, FORWARD, ReleasedACmix
from .checks import convolve
from .device import MODES, Measurements, Record, Setting, use_tf32
from .flex import FlexNeighborhood


class UsingBackends(nn.Module):
    """A module that runs with given backends.

    Args:
        module: The module.
        **backends: Names of backends by the names of the operators.
    """

    def __init__(self, module: nn.Module, **backends: str) -> None:
        super().__init__()
        self.module, self.backends = module, backends

    def forward(self, x: Tensor) -> Any:
        """Shapes are those of the module."""
        with ExitStack() as stack:
            for operator, backend in self.backends.items():
                stack.enter_context(use_backend(backend, operator))
            return self.module(x)


def layer_candidates(setting: Setting, channels: int) -> Iterator[tuple[str, nn.Module]]:
    """Yield the names and modules of what can stand in the place of a 3x3 convolution."""
    layer = partial(ACmix, channels, channels, setting.window)
    yield 'acmix', layer()
    # Each by its best backend: choosing one by name keeps a layer from running as one operator.
    yield 'acmix, parts', UsingBackends(layer(), shift_conv='dense')
    yield 'acmix, tiled', UsingBackends(layer(), neighborhood_attention='tiled')
    yield 'acmix, composed', UsingBackends(layer(), shift_conv='composed')
    yield 'released', ReleasedACmix(layer())
    yield 'conv3x3', nn.Conv2d(channels, channels, 3, padding=1, bias=False)


def machine(setting: Setting) -> Measurements:
    """Measure the two ceilings of the device: bytes and multiply-adds per second."""
    side, size = (64, 2**10) if setting.dry else (8192, 2**30)

    def copy() -> Record:
        data = torch.empty(size, dtype=torch.int8, device=setting.device).random_()

        def clone() -> None:
            data.clone()

        return dict(gb_per_s=2e-6 * size / setting.timed(clone)['gpu_ms'])

    yield dict(kind='note', name='copy'), copy
    for kind in ('fp32', 'tf32', 'fp16', 'bf16'):

        def multiply(kind: str = kind) -> Record:
            use_tf32(kind == 'tf32')
            (matrix,) = setting.random(kind, (side, side))

            def square() -> None:
                with torch.no_grad():
                    matrix @ matrix

            return dict(tflops=2e-9 * side**3 / setting.timed(square)['gpu_ms'])

        yield dict(kind='note', name=f'matrix product {kind}'), multiply


def attention(setting: Setting, only: int | None = None) -> Measurements:
    """Time the backends of neighborhood_attention.

    Args:
        setting: Where it runs.
        only: Number of a stage whose kernels have to be compiled first; by default all are timed.
    """
    cases = [
        (1, 'fp16', 'NCHW'), (1, 'fp32', 'NCHW'), (1, 'fp16', 'NHWC'), (1, 'fp32', 'NHWC'),
        (2, 'fp16', 'NCHW'), (1, 'bf16', 'NCHW'),
    ]  # fmt: skip
    backends = [
        b
        for b in ('triton', 'tiled', 'reference')
        if b in available_backends('neighborhood_attention')
    ]
    stages = setting.stages if only is None else setting.stages[only:][:1]
    for (batch_size, kind, form), (c, h, w) in ((case, s) for case in cases for s in stages):
        qkv = setting.projections((batch_size, 4, c // 4, h, w), kind, form)
        for backend in backends if only is None else ('triton',):
            if backend == 'reference' and (batch_size, form) != (1, 'NCHW'):
                continue
            if backend == 'triton' and setting.dry:  # seconds in the interpreter
                continue
            for mode in MODES:
                record = _record(f'{batch_size}x{c}@{h}x{w} {kind} {form}', backend, mode)
                call = partial(attend, qkv, setting.window, backend)
                yield record, partial(_timed, setting, call, qkv, mode)


def attend(qkv: Sequence[Tensor], kernel_size: int, backend: str | None) -> Tensor:
    """Attend with the same side of the window everywhere."""
    q, k, v = qkv
    return neighborhood_attention(q, k, v, kernel_size, backend=backend)


def flex(setting: Setting) -> Measurements:
    """Check and time the same attention through FlexAttention."""
    torch._dynamo.config.recompile_limit = 64
    for kind, (c, h, w) in ((kind, stage) for kind in ('fp16', 'fp32') for stage in setting.stages):
        # The kernels for the backward pass do not fit smaller blocks in half precision.
        block = 64 if kind == 'fp32' or c < 256 else 128
        flexible = FlexNeighborhood(h, w, setting.window, block, setting.device)
        qkv = setting.projections((1, 4, c // 4, h, w), kind)
        case = f'1x{c}@{h}x{w} {kind} NCHW'
        check = dict(kind='check', what='flex', name='flex', dtype=kind, case=case)
        yield check, partial(_flex_error, flexible, qkv, setting.window)
        if not setting.dry:  # it has no backward pass on CPUs
            for mode in MODES:
                call = partial(flexible, *qkv)
                yield _record(case, 'flex', mode), partial(_timed, setting, call, qkv, mode)


@torch.no_grad()
def _flex_error(flexible: FlexNeighborhood, qkv: Sequence[Tensor], kernel_size: int) -> Record:
    expected = attend([tensor.double() for tensor in qkv], kernel_size, 'reference')
    off = ((flexible(*qkv).double() - expected).norm() / expected.norm()).item()
    return dict(ok=off < 1e-2, out=off)


def conv(setting: Setting) -> Measurements:
    """Time the convolution path, its projection included, beside a plain convolution."""
    for search, kind, (c, h, w) in (
        (b, n, s) for b in (False, True) for n in ('fp32', 'fp16') for s in setting.stages
    ):
        *path, plain = setting.random(
            kind, (1, c, h, w), (3 * c, c), (1, 9, 12), (1, c, 9, 3, 3), (c, c, 3, 3)
        )
        x, weight, fc, kernel = path
        functions: dict[str, tuple[Callable[[], Tensor], list[Tensor]]] = {
            name: (partial(convolve, x, weight, fc, None, kernel, backend=name), path)
            for name in ('dense', 'composed', 'reference')
        }
        functions['conv3x3'] = (partial(F.conv2d, x, plain, padding=1), [x, plain])
        for name, (function, inputs) in functions.items():
            for mode in MODES:
                record = _record(f'1x{c}@{h}x{w} {kind} cudnn.benchmark={search}', name, mode)
                yield record, partial(_timed_conv, setting, function, inputs, mode, search)


def _timed_conv(
    setting: Setting, function: Callable, inputs: Sequence[Tensor], mode: str, search: bool
) -> Record:
    torch.backends.cudnn.benchmark = search
    return _timed(setting, function, inputs, mode)


def layer(setting: Setting) -> Measurements:
    """Time layers and the convolution that they replace."""
    cases = [
        (1, 'tf32', 'NCHW'), (1, 'fp16', 'NCHW'), (1, 'fp16', 'NHWC'), (1, 'tf32', 'NHWC'),
        (2, 'fp16', 'NCHW'), (2, 'tf32', 'NCHW'), (1, 'bf16', 'NCHW'), (1, 'fp32', 'NCHW'),
    ]  # fmt: skip
    for (batch_size, kind, form), (c, h, w) in (
        (case, stage) for case in cases[: 2 if setting.dry else None] for stage in setting.stages
    ):
        for name, module in layer_candidates(setting, c):
            if name == 'released' and (batch_size, form) != (1, 'NCHW'):
                continue
            for mode in MODES:
                arguments = (module, (batch_size, c, h, w), kind, form, mode)
                yield (
                    _record(f'{batch_size}x{c}@{h}x{w} {kind} {form}', name, mode),
                    partial(_timed_layer, setting, *arguments),
                )


def backbone(setting: Setting) -> Measurements:
    """Time ACmixResNet-50 and ACmixSwin-T beside the plain networks of torchvision."""
    resnet: Callable[[], dict[str, Any]] = partial(
        dict, type='ACmixResNet', depth=50, base_channels=8 if setting.dry else 64,
        acmix_cfg=dict(kernel_att=setting.window),
    )  # fmt: skip

    def tiled() -> nn.Module:
        return UsingBackends(MODELS.build(resnet()), neighborhood_attention='tiled')

    def plain_resnet() -> nn.Module:
        from torchvision.models import resnet50

        return nn.Sequential(*list(resnet50().children())[:-2])

    def plain_swin() -> nn.Module:
        from torchvision.models import swin_t

        return swin_t().features

    families: dict[str, dict[str, Callable[[], nn.Module]]] = {
        'ResNet-50': {
            'acmix': lambda: MODELS.build(resnet()),
            'acmix, tiled': tiled,
            'torchvision': plain_resnet,
        },
        'Swin-T': {
            'acmix': lambda: MODELS.build(dict(type='ACmixSwin', drop_path_rate=0.2)),
            'torchvision': plain_swin,
        },
    }
    kinds = (('fp16', 'NCHW'), ('tf32', 'NCHW'), ('fp16', 'NHWC'))
    batch_size, (h, w) = (1 if setting.dry else 2), setting.image
    for (kind, form), family in (
        (k, f) for k in kinds[: 1 if setting.dry else None] for f in families
    ):
        for name, make in families[family].items():
            if setting.dry and name == 'torchvision':  # it is not needed for a dry run
                continue
            for mode in (BOTH, FORWARD):
                case = f'{family} {batch_size}x3x{h}x{w} {kind} {form}'
                arguments = (make, (batch_size, 3, h, w), kind, form, mode)
                yield _record(case, name, mode), partial(_timed_backbone, setting, *arguments)


def _timed_backbone(setting: Setting, make: Callable[[], nn.Module], *arguments: Any) -> Record:
    return setting.timed(setting.layer_step(make(), *arguments), gaps=True)


def compiled(setting: Setting) -> Measurements:
    """Time a layer in torch.compile."""
    torch._dynamo.config.recompile_limit = 64
    stages = (setting.stages[0], setting.stages[-1])
    for (c, h, w), kind in ((s, k) for s in stages for k in ('fp16', 'tf32')):
        module = ACmix(c, c, setting.window)
        made_by: dict[str, Any] = {'acmix': module}
        if setting.dry:
            made_by['acmix, compiled'] = torch.compile(module, fullgraph=True, backend='aot_eager')
        else:
            made_by['acmix, compiled'] = torch.compile(module, fullgraph=True)
            made_by['acmix, CUDA graphs'] = torch.compile(
                module, fullgraph=True, mode='reduce-overhead'
            )
        for name, made in made_by.items():
            yield (
                _record(f'1x{c}@{h}x{w} {kind}', name, BOTH),
                partial(_timed_layer, setting, made, (1, c, h, w), kind, 'NCHW', BOTH),
            )


def _timed(setting: Setting, function: Callable, inputs: Any, mode: str) -> Record:
    return setting.timed(setting.step(function, inputs, mode))


def _timed_layer(setting: Setting, *arguments: Any) -> Record:
    return setting.timed(setting.layer_step(*arguments))


def _record(case: str, name: str, mode: str) -> Record:
    return dict(kind='timing', case=case, name=name, mode=mode)
