"""Measure ACmix against the released formula, plain convolutions and plain backbones.

    python tools/analysis/benchmark.py [--suites layer ...] [--quick] [--page docs/performance.md]

Candidates of a comparison run in turn (A B A B ...) in one process; what counts is the median of
their ratios within a round, given with its quartiles: a busy machine slows both sides of a ratio.
Peak memory is that of a fresh process for each candidate, which needs Linux. Writes
``benchmark.json``, ``benchmark.md`` and ``scaling.png`` to ``--out``, prints the tables and puts
them into ``--page``.
"""

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import acmix_mm  # noqa: F401  registers the backbones
from acmix_mm.layers import ACmix
from acmix_mm.layers.acmix import coordinates
from acmix_mm.ops import available_backends, neighborhood_attention, pointwise_conv, shift_conv
from acmix_mm.ops.padding import reflect_pad2d
from acmix_mm.registry import MODELS

FORWARD, BOTH = 'forward', 'forward + backward'
# Middle layers of ResNet-50's stages on an 800x1336 image: (C, H, W).
STAGES = ((64, 200, 334), (128, 100, 167), (256, 50, 84), (512, 25, 42))
SCALING_SIDES = (64, 128, 256, 512)
# Of glibc: large blocks are kept for the next one who asks, instead of given back to the system.
KEEP_MEMORY = dict(MALLOC_MMAP_THRESHOLD_='4294967296', MALLOC_TRIM_THRESHOLD_='8589934592')
MARKS = (
    '<!-- figures: written by tools/analysis/benchmark.py -->\n',
    '<!-- figures: end -->\n',
)
MATMUL_SIDE = 1024
MATMUL_FLOPS = 2 * MATMUL_SIDE**3


# --- What is compared ---------------------------------------------------------------------------


class ReleasedACmix(nn.Module):
    """The arithmetic of the released ResNet-ACmix layer, on the parameters of one of ours.

    Keys, values and positions are unfolded to k_a^2 copies, the fully connected layer makes k_c^2
    maps, and a grouped convolution shifts and sums them.
    """

    def __init__(self, layer: ACmix) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""
        layer = self.layer
        stride, heads, channels = layer.stride[0], layer.num_heads, layer.head_channels
        projections = zip(layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3), strict=True)
        q, k, v = (F.conv2d(x, weight, bias) for weight, bias in projections)
        maps = [t.unflatten(1, (heads, channels)) for t in (q, k, v)]
        (position,) = layer.position(coordinates(*x.shape[-2:], x.dtype, x.device))

        query, key, value = (t.flatten(0, 1) for t in maps)
        query = query[..., ::stride, ::stride] * channels**-0.5
        nearby = self._unfold(key) + position[..., None, ::stride, ::stride]
        weights = (query.unsqueeze(2) * (nearby - self._unfold(position))).sum(1).softmax(1)
        attention = (weights.unsqueeze(1) * self._unfold(value)).sum(2)
        attention = attention.view(len(x), -1, *attention.shape[-2:])

        fc = layer.shift_conv.fc_weight[0]
        mixed = F.conv2d(torch.cat(maps, 1).flatten(-2), fc[..., None, None])
        mixed = mixed.transpose(1, 2).reshape(len(x), -1, *x.shape[-2:])
        padding = layer.kernel_size[0] // 2
        kernel = layer.shift_conv.kernel
        convolution = F.conv2d(mixed, kernel, None, stride, padding, groups=channels)
        return layer.mix.alpha * attention + layer.mix.beta * convolution

    def _unfold(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, K * K, Ho, Wo)."""
        size, stride = self.layer.kernel_att, self.layer.stride[0]
        height, width = (-(-side // stride) for side in x.shape[-2:])
        unfolded = F.unfold(reflect_pad2d(x, size // 2), size, stride=stride)
        return unfolded.view(*x.shape[:2], size**2, height, width)


class Operator(nn.Module):
    """One of the operators with one backend, of the layer's maps, or of its input to project it."""

    def __init__(self, name: str, backend: str, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.name, self.backend, self.head_channels = name, backend, channels // heads
        if name == 'shift_conv':
            self.fc_weight = nn.Parameter(torch.randn(1, 9, 3 * heads))
            self.kernel = nn.Parameter(torch.randn(1, channels, 9, 3, 3))
        elif name == 'pointwise_conv':
            self.weight = nn.Parameter(torch.randn(3 * channels, channels))
            self.bias = nn.Parameter(torch.randn(3 * channels))

    def forward(self, maps: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(B, 3 C, H, W) -> (B, C, H, W), or (B, C, H, W) -> three times the same."""
        if self.name == 'pointwise_conv':
            return pointwise_conv(maps, self.weight, self.bias, 3, backend=self.backend)
        maps = maps.unflatten(1, (-1, self.head_channels))
        if self.name == 'shift_conv':
            return shift_conv(maps, self.fc_weight, None, self.kernel, backend=self.backend)
        return neighborhood_attention(*maps.chunk(3, 1), 7, backend=self.backend).flatten(1, 2)


class Square(nn.Module):
    """The product of a matrix with itself, of which the processor is as fast as it can be."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, N) -> (N, N)."""
        return x @ x


class DetectorStep(nn.Module):
    """Losses of Mask R-CNN on one random image; the input stands for nothing but its size."""

    def __init__(self, backbone: dict) -> None:
        super().__init__()
        from mmdet.registry import MODELS as DETECTORS
        from mmengine.config import Config

        cfg = Config.fromfile(Path(__file__).parents[2] / 'configs' / 'mask_rcnn_acmix.py')
        cfg.model.backbone = backbone
        self.detector = DETECTORS.build(cfg.model)

    def forward(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) -> the sum of all losses."""
        from mmdet.testing import demo_mm_inputs

        shape = [tuple(image.shape[1:])]
        data = demo_mm_inputs(1, shape, num_items=[8], with_mask=True)
        data = self.detector.data_preprocessor(data, training=True)
        losses = self.detector(**data, mode='loss')
        return self.detector.parse_losses(losses)[0]


Case = tuple[nn.Module, tuple[int, ...]]  # a candidate and the shape of its input


def layer_case(kind: str, channels: int, height: int, width: int) -> Case:
    """ACmix, the released formula or a plain convolution between C channels."""
    torch.manual_seed(0)
    shape = (1, channels, height, width)
    if kind == 'conv3x3':
        return nn.Conv2d(channels, channels, 3, padding=1, bias=False), shape
    layer = ACmix(channels, channels)
    return ReleasedACmix(layer) if kind == 'released' else layer, shape


def operator_case(kind: str, name: str, channels: int, height: int, width: int) -> Case:
    """An operator with the backend ``kind``, or a matrix product to compare it with."""
    if kind == 'matmul':
        return Square(), (MATMUL_SIDE, MATMUL_SIDE)
    shape = (1, channels if name == 'pointwise_conv' else 3 * channels, height, width)
    return Operator(name, kind, channels), shape


def backbone_cfg(kind: str, family: str) -> dict:
    """Of ACmix or of mmdet."""
    ours, plain = dict(
        resnet=(dict(type='ACmixResNet', depth=50), dict(type='mmdet.ResNet', depth=50)),
        swin=(dict(type='ACmixSwin'), dict(type='mmdet.SwinTransformer')),
        pvt=(dict(type='ACmixPVT'), dict(type='mmdet.PyramidVisionTransformer')),
    )[family]
    return ours if kind == 'acmix' else plain


def backbone_case(kind: str, family: str, height: int, width: int) -> Case:
    """A whole backbone, with random weights."""
    torch.manual_seed(0)
    return MODELS.build(backbone_cfg(kind, family)), (1, 3, height, width)


def detector_case(kind: str, family: str, height: int, width: int) -> Case:
    """A training step of Mask R-CNN."""
    torch.manual_seed(0)
    cfg = backbone_cfg(kind, family) | dict(out_indices=(0, 1, 2, 3))
    return DetectorStep(cfg), (1, 3, height, width)


BUILDERS = dict(
    layer=layer_case, operator=operator_case, backbone=backbone_case, detector=detector_case
)


@dataclass(frozen=True)
class Comparison:
    """Candidates that are measured against each other.

    Attributes:
        suite: Its builder.
        arguments: Of the builder, after the candidate's name.
        candidates: Names; the first is what ratios refer to.
        modes: Forward, forward and backward, or both.
    """

    suite: str
    arguments: tuple
    candidates: tuple[str, ...]
    modes: tuple[str, ...] = (FORWARD, BOTH)

    def build(self, candidate: str) -> Case:
        """The module and the shape of its input."""
        return BUILDERS[self.suite](candidate, *self.arguments)

    def __str__(self) -> str:
        words = [word for word in self.arguments if isinstance(word, str)]
        sizes = [str(size) for size in self.arguments if not isinstance(size, str)]
        return ' '.join([self.suite, *words, 'x'.join(sizes)])


def comparisons(suites: Sequence[str], quick: bool) -> list[Comparison]:
    """Everything that is measured."""
    shrink = 8 if quick else 1

    def sized(channels: int, height: int, width: int) -> tuple[int, int, int]:
        return channels, height // shrink, width // shrink

    found = []
    for name in ('neighborhood_attention', 'shift_conv', 'pointwise_conv'):
        # Triton's kernels are for GPUs.
        backends = [b for b in available_backends(name) if b not in ('reference', 'triton')]
        for stage in ((64, 128, 128), *STAGES):
            found.append(Comparison('operator', (name, *sized(*stage)), (*backends, 'matmul')))
    found += [
        # Not all three in turn: the released formula leaves gigabytes to clear behind.
        Comparison('layer', sized(*stage), ('acmix', other))
        for stage in ((64, 128, 128), *STAGES)
        for other in ('released', 'conv3x3')
    ]
    plain = ('acmix', 'mmdet')
    found += [
        Comparison('backbone', ('resnet', 800 // shrink, 1344 // shrink), plain),
        Comparison('backbone', ('swin', 448 // shrink, 672 // shrink), plain),
        Comparison('backbone', ('pvt', 448 // shrink, 672 // shrink), plain),
        Comparison('detector', ('resnet', 800 // shrink, 1344 // shrink), plain, (BOTH,)),
    ]
    return [comparison for comparison in found if comparison.suite in suites]


# --- How it is measured -------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """One candidate in one mode.

    Attributes:
        comparison: What is measured.
        mode: Forward, or forward and backward.
        candidate: Its name.
        milliseconds: Median time.
        ratio: Median of its time over the first candidate's in the same round.
        quartiles: Of those ratios.
    """

    comparison: str
    mode: str
    candidate: str
    milliseconds: float
    ratio: float
    quartiles: tuple[float, float]


def tensors_of(output: Any) -> list[Tensor]:
    """Of a module that returns one or several."""
    return [output] if isinstance(output, Tensor) else list(output)


def run(module: nn.Module, x: Tensor, mode: str) -> None:
    """One pass."""
    with torch.set_grad_enabled(mode == BOTH):
        outputs = tensors_of(module(x))
        if mode == BOTH:
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
            module.zero_grad()
            x.grad = None


def prepare(case: Case, mode: str) -> Callable[[], None]:
    """What is timed: inference in eval mode, or a step in training mode."""
    module, shape = case
    module.train(mode == BOTH)
    x = torch.randn(shape).requires_grad_(mode == BOTH)
    return partial(run, module, x, mode)


def time_in_turn(functions: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every function in every round, in alternating order."""
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
    """Bytes kept for the backward pass, parameters left out, and bytes of the input."""
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
    """Of forward and backward above the idle process, in a fresh one."""
    arguments = json.dumps([comparison.suite, candidate, *comparison.arguments])
    command = [sys.executable, __file__, '--peak-of', arguments]
    command += ['--threads', str(torch.get_num_threads())]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(result.stdout.splitlines()[-1])


def print_peak_bytes(suite: str, candidate: str, *arguments: Any) -> None:
    """What the fresh process does."""
    module, shape = BUILDERS[suite](candidate, *arguments)
    # The libraries load their code and their pools of threads on first use. 64 pixels are the least
    # that PVT can reduce; more than needed would leave memory free for what is measured.
    side = 64 if suite in ('backbone', 'detector') else 8
    prepare((module, (*shape[:2], side, side)), BOTH)()
    function = prepare((module, shape), BOTH)
    Path('/proc/self/clear_refs').write_text('5')  # resets the peak
    idle = process_bytes('VmRSS')
    function()
    # At least a page: small maps fit into memory that the libraries have left free.
    print(max(process_bytes('VmHWM') - idle, resource.getpagesize()))


def process_bytes(entry: str) -> int:
    """Memory of this process as Linux reports it."""
    status = Path('/proc/self/status').read_text()
    return 1024 * int(status.split(f'{entry}:')[1].split()[0])


def measure_memory(comparison: Comparison, known: list[dict]) -> list[dict]:
    """Bytes saved and peak memory of all candidates that are not known yet."""
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
    """Time and memory of forward and backward of ACmix layers of 64 channels on square maps."""
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
    """Median milliseconds of each side, in turn in a fresh process."""
    command = [sys.executable, __file__, '--scaling-of', json.dumps([sides, rounds])]
    command += ['--threads', str(torch.get_num_threads())]
    environment = os.environ | environment
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(result.stdout.splitlines()[-1])


def print_scaling_times(sides: Sequence[int], rounds: int) -> None:
    """What the fresh process does."""
    functions = {str(side): prepare(layer_case('acmix', 64, side, side), BOTH) for side in sides}
    seconds = time_in_turn(functions, rounds)
    print(json.dumps({name: 1e3 * statistics.median(times) for name, times in seconds.items()}))


def fitted_exponent(rows: list[dict], key: str) -> float:
    """Slope of log(value) over log(pixels), by least squares."""
    x = [2 * math.log(row['side']) for row in rows]
    y = [math.log(row[key]) for row in rows]
    return statistics.linear_regression(x, y).slope


def roofline(rounds: int) -> dict[str, float]:
    """What this machine can do: GFLOP/s of a matrix product and GB/s of a copy."""
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


# --- What is reported ---------------------------------------------------------------------------


class Results:
    """All numbers of a run, and the table of targets that is read off them."""

    def __init__(self) -> None:
        self.machine: dict[str, Any] = {}
        self.times: list[Measurement] = []
        self.memory: list[dict] = []
        self.scaling: list[dict] = []

    def ratio(self, comparison: str, mode: str, candidate: str) -> float:
        """Time of a candidate over that of the first one."""
        return next(
            m.ratio
            for m in self.times
            if (m.comparison, m.mode, m.candidate) == (comparison, mode, candidate)
        )

    def memory_of(self, comparison: str, candidate: str) -> dict:
        """Bytes of a candidate."""
        return next(
            row
            for row in self.memory
            if (row['comparison'], row['candidate']) == (comparison, candidate)
        )

    def roofline_share(self, comparison: Comparison) -> float:
        """FLOP/s of the first backend's forward pass over those of the matrix product."""
        name, channels, height, width = comparison.arguments
        per_value = dict(
            neighborhood_attention=4 * 7**2,
            shift_conv=2 * 12 * 3**2,
            pointwise_conv=2 * 3 * channels,
        )[name]
        work = per_value * channels * height * width / MATMUL_FLOPS
        return work * self.ratio(str(comparison), FORWARD, 'matmul')

    def to_json(self) -> str:
        """Everything."""
        times = [asdict(measurement) for measurement in self.times]
        values = dict(machine=self.machine, times=times, memory=self.memory, scaling=self.scaling)
        return json.dumps(values, indent=1) + '\n'

    def to_markdown(self, listed: list[Comparison]) -> str:
        """All tables."""
        machine = ', '.join(f'{key} {value}' for key, value in self.machine.items())
        parts = [f'Machine: {machine}.\n']
        if self.times:
            parts.append(
                table(
                    ('measured', 'mode', 'candidate', 'ms', 'times the first', 'quartiles'),
                    [
                        (
                            m.comparison,
                            m.mode,
                            m.candidate,
                            f'{m.milliseconds:.2f}',
                            f'{m.ratio:.2f}',
                            f'{m.quartiles[0]:.2f} to {m.quartiles[1]:.2f}',
                        )
                        for m in self.times
                        if m.candidate != 'matmul'
                    ],
                )
            )
        shares = [
            (str(comparison), f'{self.roofline_share(comparison):.0%}')
            for comparison in listed
            if comparison.suite == 'operator'
        ]
        if shares:
            parts.append(table(('forward', "share of the matrix product's FLOP/s"), shares))
        if self.memory:
            parts.append(
                table(
                    ('memory', 'candidate', 'kept for backward / input', 'peak (MiB)'),
                    [
                        (
                            row['comparison'],
                            row['candidate'],
                            f'{row["saved_bytes"] / row["input_bytes"]:.1f}',
                            f'{row["peak_bytes"] / 2**20:.0f}',
                        )
                        for row in self.memory
                    ],
                )
            )
        if self.scaling:
            rows = [
                (
                    f'{row["side"]}^2',
                    f'{row["milliseconds"]:.1f}',
                    f'{row["milliseconds_kept"]:.1f}',
                    f'{row["peak_bytes"] / 2**20:.0f}',
                )
                for row in self.scaling
            ]
            keys = ('milliseconds', 'milliseconds_kept', 'peak_bytes')
            exponents = [f'{fitted_exponent(self.scaling, key):.2f}' for key in keys]
            rows.append(('exponent', *exponents))
            header = ('64 channels, forward + backward', 'ms', 'ms, memory kept', 'peak (MiB)')
            parts.append(table(header, rows))
        return '\n'.join(parts)

    def plot(self, path: Path) -> None:
        """Time and memory over the number of pixels."""
        import matplotlib

        matplotlib.use('Agg')
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5), layout='constrained')
        pixels = [row['side'] ** 2 for row in self.scaling]
        labels = dict(milliseconds='time (ms)', peak_bytes='peak memory (bytes)')
        for axis, (key, label) in zip(axes, labels.items(), strict=True):
            axis.loglog(pixels, [row[key] for row in self.scaling], 'o-')
            exponent = fitted_exponent(self.scaling, key)
            axis.set(xlabel='pixels', ylabel=label, title=f'exponent {exponent:.2f}')
        figure.savefig(path, dpi=150)
        pyplot.close(figure)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [header, ['---'] * len(header), *rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def targets(results: Results, listed: list[Comparison]) -> str:
    """The figures to reach, and whether they were; needs all suites."""
    layers = [c for c in listed if c.suite == 'layer']
    by_size = {c.arguments: str(c) for c in layers}
    first, *stages = by_size
    attention = next(c for c in listed if c.arguments[0] == 'neighborhood_attention')
    resnet, swin, _ = (str(c) for c in listed if c.suite == 'backbone')

    def faster(size: tuple, mode: str) -> float:
        return results.ratio(by_size[size], mode, 'released')

    def memory(size: tuple, candidate: str, key: str) -> float:
        return results.memory_of(by_size[size], candidate)[key]

    to_conv = statistics.mean(
        1 / results.ratio(by_size[size], FORWARD, 'conv3x3') for size in stages
    )
    peak = memory(stages[0], 'released', 'peak_bytes') / memory(stages[0], 'acmix', 'peak_bytes')
    kept = memory(first, 'acmix', 'saved_bytes') / memory(first, 'acmix', 'input_bytes')
    to_resnet = 1 / results.ratio(resnet, FORWARD, 'mmdet')
    to_swin = 1 / results.ratio(swin, BOTH, 'mmdet')
    figures = [
        ('layer 64x128x128 over the released formula, forward', '>=', 40, faster(first, FORWARD)),
        ('the same, forward + backward', '>=', 25, faster(first, BOTH)),
        ('layer 256x50x84, forward', '>=', 20, faster(stages[2], FORWARD)),
        ('the same, forward + backward', '>=', 15, faster(stages[2], BOTH)),
        ('layer 64x128x128, kept for backward over its input', '<=', 8, kept),
        ('layer 64x200x334, peak memory of the released formula over ours', '>=', 15, peak),
        ('layer over 3x3 convolution, forward, mean of 4 sizes', '<=', 1.2, to_conv),
        ('attention forward, share of the matrix product', '>=', 0.35,
         results.roofline_share(attention)),
        ("ResNet-50 800x1344 forward, over mmdet's", '<=', 1.2, to_resnet),
        ("Swin-T 448x672 forward + backward, over mmdet's", '<=', 1.15, to_swin),
    ]  # fmt: skip
    figures += [
        (f'exponent of {name}, 64^2 to 512^2', '<=', 1.05, fitted_exponent(results.scaling, key))
        for name, key in (
            ('time', 'milliseconds'),
            ('time, memory kept', 'milliseconds_kept'),
            ('memory', 'peak_bytes'),
        )
    ]
    rows = [
        (
            what,
            f'{sign} {target:g}',
            f'{value:.2f}',
            'yes' if (value >= target if sign == '>=' else value <= target) else 'no',
        )
        for what, sign, target, value in figures
    ]
    return table(('figure', 'target', 'measured', 'reached'), rows)


def put_between_marks(page: str, text: str) -> str:
    """A page with a new text between its marks.

    Raises:
        ValueError: A mark is not there once.
    """
    begin, end = MARKS
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f'the page must have the lines {begin.strip()!r} and {end.strip()!r} once')
    return page.split(begin)[0] + begin + text + end + page.split(end)[1]


def describe_machine(rounds: int) -> dict[str, Any]:
    """What the numbers depend on."""
    return dict(
        processor=platform.processor() or platform.machine(),
        capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        **{key: round(value, 1) for key, value in roofline(rounds).items()},
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description='Measure ACmix on this machine.')
    suites = [*BUILDERS, 'scaling']
    parser.add_argument('--suites', nargs='+', choices=suites, default=suites)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark'))
    parser.add_argument('--page', type=Path, help='a Markdown page to put the tables into')
    parser.add_argument('--rounds', type=int, default=9, help='of every comparison, at least 2')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--quick', action='store_true', help='maps of an eighth of the size')
    # What the fresh processes are given.
    parser.add_argument('--peak-of', type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument('--scaling-of', type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure, write and print."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.peak_of:
        return print_peak_bytes(*args.peak_of)
    if args.scaling_of:
        return print_scaling_times(*args.scaling_of)
    listed = comparisons(args.suites, args.quick)
    results = Results()
    results.machine = describe_machine(args.rounds)
    for comparison in listed:
        print(f'{comparison} ...', file=sys.stderr)
        results.times += compare(comparison, args.rounds)
        results.memory += measure_memory(comparison, results.memory)
    args.out.mkdir(parents=True, exist_ok=True)
    if 'scaling' in args.suites:
        sides = [side // (8 if args.quick else 1) for side in SCALING_SIDES]
        results.scaling = measure_scaling(sides, args.rounds)
        results.plot(args.out / 'scaling.png')
    (args.out / 'benchmark.json').write_text(results.to_json())
    markdown = results.to_markdown(listed)
    if set(args.suites) == {*BUILDERS, 'scaling'}:
        markdown = f'{targets(results, listed)}\n{markdown}'
    (args.out / 'benchmark.md').write_text(markdown)
    if args.page:
        args.page.write_text(put_between_marks(args.page.read_text(), markdown))
        if results.scaling:
            results.plot(args.page.parent / 'images' / 'scaling.png')
    print(markdown)


if __name__ == '__main__':
    main()
