# SPDX-License-Identifier: Apache-2.0
"""Tables, a plot and raw figures of the results."""

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from acmix_mm.runtime.markdown import table

from .cases import BOTH, FORWARD, MATMUL_FLOPS, ROOFLINE, Comparison
from .measure import Measurement, fitted_exponent

CSV_HEADER = (
    'comparison',
    'mode',
    'candidate',
    'baseline',
    'milliseconds',
    'baseline_milliseconds',
    'ratio',
    'lower_quartile',
    'upper_quartile',
)
# For the layers of the four stages: time divided by that of a 3x3 convolution.
LAYER_TARGETS = {FORWARD: (1.0, 1.0, 1.0, 1.0), BOTH: (1.1, 1.0, 0.65, 0.6)}


class Results:
    """All figures of a run.

    Attributes:
        environment: What the figures depend on, see :func:`benchmarks.run.describe_environment`.
        times: Times of all comparisons.
        memory: A row for each candidate of each comparison, see
            :func:`benchmarks.measure.measure_memory`.
        scaling: A row for each size of the map, see :func:`benchmarks.measure.measure_scaling`.
    """

    def __init__(self) -> None:
        self.environment: dict[str, Any] = {}
        self.times: list[Measurement] = []
        self.memory: list[dict] = []
        self.scaling: list[dict] = []

    def ratio(self, comparison: str, mode: str, candidate: str) -> float:
        """Return the time of a candidate divided by that of its baseline."""
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
        """Return the FLOP/s of an operator's forward pass divided by those of a matrix product."""
        name, channels, height, width = comparison.arguments
        per_value = dict(
            neighborhood_attention=4 * 7**2,
            shift_conv=2 * 12 * 3**2,
            pointwise_conv=2 * 3 * channels,
        )[name]
        work = per_value * channels * height * width / MATMUL_FLOPS
        return work * self.ratio(str(comparison), FORWARD, ROOFLINE)

    def to_json(self) -> str:
        """Serialize all results to JSON."""
        values = vars(self) | dict(times=[asdict(measurement) for measurement in self.times])
        return json.dumps(values, indent=1) + '\n'

    def to_csv(self) -> str:
        """Serialize all times to CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator='\n')
        writer.writerow(CSV_HEADER)
        for m in self.times:
            figures = (m.milliseconds, m.baseline_milliseconds, m.ratio, *m.quartiles)
            names = (m.comparison, m.mode, m.candidate, m.baseline)
            writer.writerow([*names, *(f'{figure:.2f}' for figure in figures)])
        return text.getvalue()

    def to_markdown(self, listed: list[Comparison]) -> str:
        """Format all tables.

        Args:
            listed: The comparisons that were measured.
        """
        environment = ', '.join(f'{key} {value}' for key, value in self.environment.items())
        operators = [comparison for comparison in listed if comparison.suite == 'operator']
        parts = [f'Environment: {environment}.\n']
        if self.times:
            parts.append(self._times_table())
        if operators:
            shares = [(str(c), f'{self.roofline_share(c):.0%}') for c in operators]
            parts.append(table(('forward', "share of the matrix product's FLOP/s"), shares))
        if self.memory:
            parts.append(self._memory_table())
        if self.scaling:
            parts.append(self._scaling_table())
        return '\n'.join(parts)

    def _times_table(self) -> str:
        header = ('comparison', 'mode', 'candidate', 'baseline', 'ratio of times', 'quartiles')
        rows = [
            (
                m.comparison,
                m.mode,
                m.candidate,
                m.baseline,
                f'{m.ratio:.2f}',
                f'{m.quartiles[0]:.2f} to {m.quartiles[1]:.2f}',
            )
            for m in self.times
            if m.candidate != ROOFLINE
        ]
        return table(header, rows)

    def _memory_table(self) -> str:
        header = ('comparison', 'candidate', 'kept for backward / input', 'peak (MiB)')
        rows = [
            (
                row['comparison'],
                row['candidate'],
                f'{row["saved_bytes"] / row["input_bytes"]:.1f}',
                f'{row["peak_bytes"] / 2**20:.0f}',
            )
            for row in self.memory
        ]
        return table(header, rows)

    def _scaling_table(self) -> str:
        header = ('64 channels, forward + backward', 'ms', 'ms, memory kept', 'peak (MiB)')
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
        return table(header, [*rows, ('exponent', *exponents)])

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
    """Format a table of the figures that have a target.

    Args:
        results: Results of all suites, with maps of the full size.
        listed: The comparisons that were measured.
    """
    layers = {c.arguments: str(c) for c in listed if c.suite == 'layer'}
    first, *stages = layers
    middle, large = layers[stages[2]], layers[stages[0]]
    attention = next(c for c in listed if c.arguments[0] == 'neighborhood_attention')
    backbones = [str(c) for c in listed if c.suite == 'backbone']

    def ratio_of_memory(comparison: str, key: str, over: str, over_key: str) -> float:
        own = results.memory_of(comparison, 'acmix')[key]
        return own / results.memory_of(comparison, over)[over_key]

    figures = [
        (f'{layers[size]}, {mode}: time / that of a 3x3 convolution', '<=', limit,
         1 / results.ratio(layers[size], mode, 'conv3x3'))
        for mode, limits in LAYER_TARGETS.items()
        for size, limit in zip(stages, limits, strict=True)
    ]  # fmt: skip
    figures += [
        (f'{layers[size]}: memory kept for backward / input', '<=', 2,
         ratio_of_memory(layers[size], 'saved_bytes', 'acmix', 'input_bytes'))
        for size in stages
    ]  # fmt: skip
    figures += [
        (f"{comparison}, forward + backward: time / that of mmdet's", '<=', limit,
         1 / results.ratio(comparison, BOTH, 'mmdet'))
        for comparison, limit in zip(backbones, (1.05, 1.05, 1.08), strict=True)
    ]  # fmt: skip
    figures += [
        (f"{backbones[0]}: peak memory / that of mmdet's", '<=', 1,
         ratio_of_memory(backbones[0], 'peak_bytes', 'mmdet', 'peak_bytes')),
        (f"{large}: peak memory / the released layer's", '<=', 0.06,
         ratio_of_memory(large, 'peak_bytes', 'released', 'peak_bytes')),
        (f"{attention}, forward: share of the matrix product's FLOP/s", '>=', 0.35,
         results.roofline_share(attention)),
    ]  # fmt: skip
    figures += [
        (f'{name}, {mode}: speedup over the released layer', '>=', least,
         results.ratio(name, mode, 'released'))
        for name, mode, least in (
            (layers[first], FORWARD, 80), (layers[first], BOTH, 25),
            (middle, FORWARD, 20), (middle, BOTH, 15),
        )
    ]  # fmt: skip
    figures += [
        (f'{name}: exponent over pixels, 64^2 to 512^2', '<=', 1.05,
         fitted_exponent(results.scaling, key))
        for name, key in (
            ('time', 'milliseconds'),
            ('time, memory kept', 'milliseconds_kept'),
            ('peak memory', 'peak_bytes'),
        )
    ]  # fmt: skip
    rows = [
        (
            name,
            f'{sign} {target:g}',
            f'{value:.2f}',
            'yes' if (value >= target if sign == '>=' else value <= target) else 'no',
        )
        for name, sign, target, value in figures
    ]
    return table(('figure', 'target', 'measured', 'reached'), rows)
