"""The benchmarks measure what they claim to measure, and report it."""

import csv
import json

import pytest
import torch

from acmix_mm.ops import available_backends
from benchmarks import cases, measure, report, run


def test_released_formula_computes_what_our_layer_does():
    released, shape = cases.layer_case('released', 8, 9, 10)
    with torch.no_grad():
        for parameter in released.parameters():
            parameter.normal_()
    released.double()
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(released(x), released.layer(x))


def test_bfloat16_is_the_same_layer_in_half_precision():
    half, shape = cases.layer_case('bfloat16', 8, 9, 10)
    x = torch.randn(shape)
    found, expected = half(x), half.module(x)
    assert found.dtype == torch.bfloat16
    assert expected.dtype == torch.float32
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize('name', ['neighborhood_attention', 'shift_conv', 'pointwise_conv'])
def test_every_backend_of_an_operator_is_a_candidate_of_its_own(name):
    (comparison, *_) = [c for c in cases.comparisons(['operator'], True) if name in c.arguments]
    *backends, roofline = comparison.candidates
    assert backends == [
        b for b in available_backends(name) if b not in ('reference', 'triton', 'dense', 'portable')
    ]
    assert roofline not in backends
    modules = [comparison.build(candidate)[0] for candidate in comparison.candidates]
    assert [module.backend for module in modules[:-1]] == backends
    assert isinstance(modules[-1], cases.Square)


def test_functions_run_in_alternating_order_after_a_warm_up():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in 'ab'}
    seconds = measure.time_in_turn(functions, 2)
    assert calls == ['a', 'b', 'a', 'b', 'b', 'a']
    assert {name: len(times) for name, times in seconds.items()} == {'a': 2, 'b': 2}


def test_ratios_are_those_of_a_round_to_the_first_candidate(monkeypatch):
    seconds = dict(acmix=[1.0, 2.0, 4.0], conv3x3=[3.0, 8.0, 8.0])
    monkeypatch.setattr(measure, 'time_in_turn', lambda functions, rounds: seconds)
    comparison = cases.Comparison('layer', (8, 9, 9), ('acmix', 'conv3x3'), (cases.FORWARD,))
    assert measure.compare(comparison, 3) == [
        measure.Measurement(
            'layer 8x9x9', 'forward', 'conv3x3', 'acmix', 8000.0, 2000.0, 3.0, (2.5, 3.5)
        )
    ]


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


def test_writes_json_markdown_and_page(tmp_path, monkeypatch):
    listed = cases.comparisons(['operator'], quick=True)
    chosen = [c for c in listed if str(c).endswith('shift_conv 64x16x16')]
    monkeypatch.setattr(run, 'comparisons', lambda *_: chosen)
    page = tmp_path / 'page.md'
    marks = '<!-- figures: written by benchmarks/run.py -->\n<!-- figures: end -->\n'
    page.write_text(f'before\n{marks}after\n')
    threads = str(torch.get_num_threads())
    options = ['--quick', '--rounds', '2', '--suites', 'operator', '--threads', threads]
    run.main([*options, '--out', str(tmp_path), '--page', str(page)])
    results = json.loads((tmp_path / 'benchmark.json').read_text())
    assert results['environment']['matmul_gflops'] > 0
    assert {row['mode'] for row in results['times']} == {'forward', 'forward + backward'}
    markdown = (tmp_path / 'benchmark.md').read_text()
    assert 'operator shift_conv 64x16x16' in markdown
    assert page.read_text().startswith('before\n')
    assert markdown in page.read_text()
    with (tmp_path / 'page.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results['times'])
    assert all(row['candidate'] != row['baseline'] for row in rows)
    assert all(float(row['milliseconds']) > 0 for row in rows)


def test_targets_are_read_off_a_full_run():
    listed = cases.comparisons([*cases.BUILDERS, 'scaling'], quick=False)
    results = report.Results()
    for c in listed:
        baseline, *others = c.candidates
        results.times += [
            measure.Measurement(str(c), mode, name, baseline, 1.0, 1.0, 2.0, (2.0, 2.0))
            for name in others
            for mode in c.modes
        ]
        for name in c.candidates:
            size = dict(input_bytes=1, saved_bytes=7, peak_bytes=10)
            results.memory.append(dict(comparison=str(c), candidate=name, **size))
    times = ('milliseconds', 'milliseconds_kept', 'peak_bytes')
    results.scaling = [dict.fromkeys(times, side**2.0) | dict(side=side) for side in (4, 8)]
    text = report.targets(results, listed)
    assert '| layer 64x200x334: memory kept for backward / input | <= 2 | 7.00 | no |' in text
    conv = 'forward + backward: time / that of a 3x3 convolution'
    assert f'| layer 256x50x84, {conv} | <= 0.65 | 0.50 | yes |' in text
    assert f'| layer 512x25x42, {conv} | <= 0.6 | 0.50 | yes |' in text
    mmdet = "forward + backward: time / that of mmdet's"
    assert f'| backbone swin 448x672, {mmdet} | <= 1.05 | 0.50 | yes |' in text
    assert f'| backbone pvt 448x672, {mmdet} | <= 1.08 | 0.50 | yes |' in text
    assert "| backbone resnet 800x1344: peak memory / that of mmdet's | <= 1 | 1.00 | yes |" in text
    speedup = 'layer 64x128x128, forward + backward: speedup over the released layer'
    assert f'| {speedup} | >= 25 | 2.00 | no |' in text
