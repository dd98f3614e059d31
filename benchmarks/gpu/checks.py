# SPDX-License-Identifier: Apache-2.0
"""Correctness of every backend and layer: values and gradients against float64."""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from acmix_mm.layers import ACmix, PatchwiseACmix, SpatialReductionACmix, WindowACmix
from acmix_mm.ops import (
    Projection,
    available_backends,
    neighborhood_aggregation,
    neighborhood_attention,
    pointwise_conv,
    shift_conv,
    use_backend,
)
from acmix_mm.ops.gpu_layer import gpu_layer

from .device import DTYPES, FORMS, TOLERANCES, Measurements, Record, Setting, errors

# B, N, D, H, W, kernel size, stride, dilation
CASES = [
    (2, 3, 16, 20, 27, 7, 1, 1),
    (1, 2, 20, 9, 13, 7, 2, 1),
    (1, 2, 32, 17, 11, 5, 1, 2),
    (1, 1, 8, 33, 18, 3, 2, 3),
    (2, 1, 64, 5, 40, 7, 1, 1),
    (1, 2, 128, 12, 10, 7, 1, 1),
    (1, 2, 4, 1, 1, 7, 1, 1),
    (1, 1, 16, 2, 3, 7, 1, 1),
    (1, 2, 16, 31, 29, 9, 3, 2),
    (3, 4, 16, 50, 67, 7, 1, 1),
    (1, 1, 160, 9, 9, 7, 1, 1),
    (0, 2, 16, 8, 8, 7, 1, 1),
]
# C_in, N, D, H, W, kernel size, stride, dilation
LAYERS = [
    (16, 4, 4, 17, 23, 7, 1, 1),
    (130, 2, 33, 12, 10, 7, 1, 1),
    (20, 2, 20, 9, 13, 5, 2, 1),
    (24, 1, 128, 11, 8, 3, 2, 2),
    (8, 2, 16, 1, 2, 7, 1, 1),
]
TINY = [(1, 1, 16, 9, 10, 7, 1, 1), (1, 1, 20, 11, 6, 5, 2, 3)]


def check_attention(
    setting: Setting, cases: Sequence[tuple[int, ...]], kinds: Sequence[str]
) -> Measurements:
    """Check the backends of neighborhood_attention in both memory formats."""
    if setting.dry:  # Triton's interpreter is slow and multiplies bfloat16 wrongly
        cases, kinds = [(1, 1, 4, 3, 4, 3, 1, 1)], [kind for kind in kinds if kind != 'bf16']
    for case, kind, form in ((c, n, f) for c in cases for n in kinds for f in FORMS):
        for backend in _on_gpus('neighborhood_attention'):
            record = _record('neighborhood_attention', backend, kind, f'{case} {form}')
            yield record, partial(_attention_errors, setting, case, kind, form, backend)


def _attention_errors(
    setting: Setting, case: Sequence[int], kind: str, form: str, backend: str
) -> Record:
    # Fresh memory is filled with NaN then, which shows what a kernel leaves out.
    torch.use_deterministic_algorithms(True, warn_only=True)
    *shape, kernel_size, stride, dilation = case
    q, k, v = setting.projections(shape, kind, form)
    q = q[..., ::stride, ::stride].detach().requires_grad_()

    def attend(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
        return neighborhood_attention(q, k, v, kernel_size, stride, dilation, backend=backend)

    ours, definition = (partial(attend, backend=name) for name in (backend, 'reference'))
    return errors(ours, definition, [q, k, v], TOLERANCES[kind])


def check_other_operators(setting: Setting) -> Measurements:
    """Check the backends of the other operators."""
    sizes = (
        (2, 12, 16, 64, 17, 23, 3, 1, 1),
        (1, 6, 5, 10, 9, 8, 3, 2, 2),
        (1, 3, 8, 8, 1, 1, 5, 1, 1),
    )
    for case, kind in ((c, n) for c in sizes for n in ('fp32', 'fp16', 'bf16')):
        for operator, function, shapes in _other_operators(*case):
            for backend in _on_gpus(operator):
                record = _record(operator, backend, kind, str(case))
                yield record, partial(_operator_errors, setting, function, shapes, kind, backend)


def _operator_errors(
    setting: Setting,
    function: Callable[..., Tensor],
    shapes: Sequence[Sequence[int]],
    kind: str,
    backend: str,
) -> Record:
    ours, definition = (partial(function, backend=name) for name in (backend, 'reference'))
    return errors(ours, definition, setting.random(kind, *shapes), 4 * TOLERANCES[kind])


def _other_operators(
    batch_size: int, num_maps: int, groups: int, channels: int, height: int, width: int,
    kernel_size: int, stride: int, dilation: int,
) -> Iterator[tuple[str, Callable[..., Tensor], Sequence[Sequence[int]]]]:  # fmt: skip
    """Yield each operator, its function of tensors, and their shapes."""
    x, positions = (batch_size, channels, height, width), kernel_size**2
    filters = (1, channels, positions, kernel_size, kernel_size)
    yield (
        'shift_conv',
        partial(convolve, stride=stride, dilation=dilation),
        (x, (num_maps * groups, channels), (1, positions, num_maps), (1, positions), filters),
    )
    yield (
        'neighborhood_aggregation',
        partial(neighborhood_aggregation, kernel_size=5),
        ((batch_size, groups, 25, height, width), (batch_size, 3 * groups, height, width)),
    )
    yield (
        'pointwise_conv',
        _project,
        (x, (3 * channels, channels), (3 * channels,)),
    )


def _project(x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
    return torch.cat(pointwise_conv(x, weight, bias, 3, backend=backend), 1)


def convolve(
    x: Tensor,
    weight: Tensor,
    fc_weight: Tensor,
    fc_bias: Tensor | None,
    kernel: Tensor,
    *,
    stride: int = 1,
    dilation: int = 1,
    backend: str,
) -> Tensor:
    """The convolution path of a layer, with its projection."""
    (maps,) = pointwise_conv(x, weight, weight.new_zeros(len(weight)))
    maps = maps.unflatten(1, (fc_weight.shape[-1], -1))
    arguments = (maps, fc_weight, fc_bias, kernel, stride, dilation)
    return shift_conv(*arguments, backend=backend, projection=Projection(x, weight, None))


def made_layers(window: int) -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    """Yield layers with different options, their names and the shapes of their inputs."""
    acmix = partial(ACmix, 16, 16, kernel_att=window)
    options: tuple[dict[str, Any], ...] = (
        {}, dict(stride=2), dict(dilation=2), dict(num_conv_pairs=2), dict(path_weights=(0, 1))
    )  # fmt: skip
    for option in options:
        yield f'ACmix {option}', acmix(**option), (2, 16, 9, 12)
    options = ({}, dict(mask_padding=True), dict(roll_conv=False))
    for option in options:
        yield f'WindowACmix {option}', WindowACmix(24, 3, shift_size=3, **option), (2, 15, 20, 24)
    yield 'SpatialReductionACmix', SpatialReductionACmix(32, 2, sr_ratio=4), (2, 9, 13, 32)
    yield 'PatchwiseACmix', PatchwiseACmix(64, 4, 16, 3), (2, 64, 9, 13)


def check_layers(setting: Setting) -> Measurements:
    """Check every layer, as it chooses backends by itself, against the definitions."""
    for name, module, shape in made_layers(setting.window):
        module = module.to(setting.device)
        definition = copy.deepcopy(module).double()
        for kind in ('fp32', 'fp16', 'bf16'):
            record = _record('layer', 'automatic', kind, name)
            yield record, partial(_layer_errors, setting, module, definition, shape, kind)


def _layer_errors(
    setting: Setting, module: nn.Module, definition: nn.Module, shape: Sequence[int], kind: str
) -> Record:
    def ours(x: Tensor, *_: Tensor) -> Tensor:
        with setting.cast(kind):
            return module(x)

    def exact(x: Tensor, *_: Tensor) -> Tensor:
        with use_backend('reference'):
            return definition(x)

    (x,) = setting.random('fp32', shape)
    doubles = [x.detach().double().requires_grad_(), *definition.parameters()]
    return errors(ours, exact, [x, *module.parameters()], 10 * TOLERANCES[kind], doubles)


def check_one_operator(setting: Setting) -> Measurements:
    """Check layers that are one operator, in both memory formats and without autocast."""
    cases, kinds = LAYERS, ['fp32', 'fp16', 'bf16', 'fp64']
    if setting.dry:
        cases, kinds = [(3, 1, 2, 3, 4, 3, 2, 1)], ['fp32', 'fp16']
    for case, kind, form in ((c, n, f) for c in cases for n in kinds for f in FORMS):
        record = _record('layer', 'one operator', kind, f'{case} {form}')
        yield record, partial(_one_operator_errors, setting, case, kind, form)


def _one_operator_errors(setting: Setting, case: Sequence[int], kind: str, form: str) -> Record:
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills fresh memory with NaN
    inputs, heads, depth, height, width, *window = case
    kernel_size, stride, dilation = window
    layer = ACmix(inputs, heads * depth, kernel_size, heads, stride=stride, dilation=dilation)
    layer = layer.to(setting.device, DTYPES[kind])
    with torch.no_grad():
        layer.mix.alpha.mul_(0.7)
        layer.position.weight.mul_(3)
    definition = copy.deepcopy(layer).double()
    (x,) = setting.random(kind, (2, inputs, height, width))
    x = x.detach().contiguous(memory_format=FORMS[form]).requires_grad_()

    def ours(x: Tensor, *_: Tensor) -> Tensor:
        return gpu_layer(x, *layer.weights_of_one_operator(), *window)

    def exact(x: Tensor, *_: Tensor) -> Tensor:
        with use_backend('reference'):
            return definition(x)

    doubles = [x.detach().double().requires_grad_(), *definition.parameters()]
    return errors(ours, exact, [x, *layer.parameters()], 10 * TOLERANCES[kind], doubles)


def _on_gpus(operator: str) -> list[str]:
    # 'portable' is for graphs that other programs run.
    others = ('cpu', 'portable')
    return [backend for backend in available_backends(operator) if backend not in others]


def _record(what: str, backend: str, kind: str, case: str) -> Record:
    return dict(kind='check', what=what, name=backend, dtype=kind, case=case)
