"""The benchmarks measure what they say."""

import csv
import json

import pytest
import torch

from benchmarks import cases, measure, report, run


def test_released_formula_computes_what_our_layer_does():
    released, shape = cases.layer_case('released', 8, 9, 10)
    with torch.no_grad():
        for parameter in released.parameters():
            parameter.normal_()
    released.double()
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(released(x), released.layer(x))


def test_ratios_quartiles_and_order():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in 'ab'}
    seconds = measure.time_in_turn(functions, 2)
    assert calls == ['a', 'b', 'a', 'b', 'b', 'a']
    assert {name: len(times) for name, times in seconds.items()} == {'a': 2, 'b': 2}


def test_exponent_of_a_power_law():
    rows = [dict(side=side, value=3 * (side**2) ** 1.25) for side in (4, 8, 32)]
    assert measure.fitted_exponent(rows, 'value') == pytest.approx(1.25)


def test_saved_bytes_count_every_storage_once():
    class Twice(torch.nn.Module):
        def forward(self, x):
            return x * x.view(-1) + x * x

    assert measure.saved_bytes((Twice(), (100,))) == (400, 400)


def test_peak_memory_of_the_released_formula_is_higher():
    comparison = cases.Comparison('layer', (16, 96, 96), ('acmix', 'released'))
    ours, released = (measure.peak_bytes(comparison, name) for name in comparison.candidates)
    assert released > 4 * ours > 0


def test_writes_json_markdown_and_page(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text(
        'before\n<!-- figures: written by benchmarks -->\n<!-- figures: end -->\nafter\n'
    )
    threads = str(torch.get_num_threads())
    options = ['--quick', '--rounds', '2', '--suites', 'operator', '--threads', threads]
    run.main([*options, '--out', str(tmp_path), '--page', str(page)])
    results = json.loads((tmp_path / 'benchmark.json').read_text())
    assert results['machine']['matmul_gflops'] > 0
    assert {row['mode'] for row in results['times']} == {'forward', 'forward + backward'}
    markdown = (tmp_path / 'benchmark.md').read_text()
    assert 'operator shift_conv 64x16x16' in markdown
    assert page.read_text().startswith('before\n')
    assert markdown in page.read_text()
    assert '| cpu | cpu |' not in markdown, 'a candidate is compared with itself'
    with (tmp_path / 'page.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results['times'])
    assert float(rows[0]['milliseconds']) > 0


def test_targets_are_read_off_a_full_run():
    listed = cases.comparisons([*cases.BUILDERS, 'scaling'], quick=False)
    results = report.Results()
    for c in listed:
        for name in c.candidates:
            results.times += [
                measure.Measurement(str(c), mode, name, 1.0, 2.0, (2.0, 2.0)) for mode in c.modes
            ]
            size = dict(input_bytes=1, saved_bytes=7, peak_bytes=10)
            results.memory.append(dict(comparison=str(c), candidate=name, **size))
    times = ('milliseconds', 'milliseconds_kept', 'peak_bytes')
    results.scaling = [dict.fromkeys(times, side**2.0) | dict(side=side) for side in (4, 8)]
    text = report.targets(results, listed)
    assert '| layer 64x128x128, kept for backward over its input | <= 8 | 7.00 | yes |' in text
    assert "| ResNet-50 800x1344 forward, over mmdet's | <= 1.2 | 0.50 | yes |" in text
    assert '| the same, forward + backward | >= 25 | 2.00 | no |' in text
