# SPDX-License-Identifier: Apache-2.0
"""What is reported: tables, a plot and raw figures."""

import csv
import io
import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from acmix_mm.runtime.markdown import table

from .cases import BOTH, FORWARD, MATMUL_FLOPS, Comparison
from .measure import Measurement, fitted_exponent


class Results:
    """All figures of a run."""

    def __init__(self) -> None:
        self.machine: dict[str, Any] = {}
        self.times: list[Measurement] = []
        self.memory: list[dict] = []
        self.scaling: list[dict] = []

    def ratio(self, comparison: str, mode: str, candidate: str) -> float:
        """Return the time of a candidate over that of the first one."""
        return next(
            m.ratio
            for m in self.times
            if (m.comparison, m.mode, m.candidate) == (comparison, mode, candidate)
        )

    def memory_of(self, comparison: str, candidate: str) -> dict:
        """Return the memory figures of a candidate."""
        return next(
            row
            for row in self.memory
            if (row['comparison'], row['candidate']) == (comparison, candidate)
        )

    def roofline_share(self, comparison: Comparison) -> float:
        """Return FLOP/s of the first backend's forward pass over those of the matrix product."""
        name, channels, height, width = comparison.arguments
        per_value = dict(
            neighborhood_attention=4 * 7**2,
            shift_conv=2 * 12 * 3**2,
            pointwise_conv=2 * 3 * channels,
        )[name]
        work = per_value * channels * height * width / MATMUL_FLOPS
        return work * self.ratio(str(comparison), FORWARD, 'matmul')

    def to_json(self) -> str:
        """Serialize all results to JSON."""
        times = [asdict(measurement) for measurement in self.times]
        values = dict(machine=self.machine, times=times, memory=self.memory, scaling=self.scaling)
        return json.dumps(values, indent=1) + '\n'

    def to_csv(self) -> str:
        """Serialize the times of all candidates to CSV."""
        rows = [
            (m.comparison, m.mode, m.candidate, *(f'{figure:.2f}' for figure in figures))
            for m in self.times
            for figures in [(m.milliseconds, m.ratio, *m.quartiles)]
        ]
        text = io.StringIO()
        header = ('comparison', 'mode', 'candidate', 'milliseconds', 'ratio', 'lower', 'upper')
        csv.writer(text, lineterminator='\n').writerows([header, *rows])
        return text.getvalue()

    def to_markdown(self, listed: list[Comparison]) -> str:
        """Format all tables, with times relative to the first candidate of each comparison."""
        machine = ', '.join(f'{key} {value}' for key, value in self.machine.items())
        parts = [f'Machine: {machine}.\n']
        first = {str(comparison): comparison.candidates[0] for comparison in listed}
        if self.times:
            parts.append(
                table(
                    ('measured', 'mode', 'candidate', 'over', 'ratio of times', 'quartiles'),
                    [
                        (
                            m.comparison,
                            m.mode,
                            m.candidate,
                            first[m.comparison],
                            f'{m.ratio:.2f}',
                            f'{m.quartiles[0]:.2f} to {m.quartiles[1]:.2f}',
                        )
                        for m in self.times
                        if m.candidate not in ('matmul', first[m.comparison])
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
            header = ('64 channels, forward + backward', 'ms', 'ms, memory kept', 'peak (MiB)')
            parts.append(table(header, [*rows, ('exponent', *exponents)]))
        return '\n'.join(parts)

    def plot(self, path: Path) -> None:
        """Plot time and memory over the number of pixels."""
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


def targets(results: Results, listed: list[Comparison]) -> str:
    """Format the table of targets and whether they were reached; needs all suites."""
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
