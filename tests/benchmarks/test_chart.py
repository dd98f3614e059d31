"""benchmarks/chart.py draws the times of benchmarks/run.py."""

import pytest

from benchmarks import cases, chart, measure, report


@pytest.fixture
def times(tmp_path):
    results = report.Results()
    for i, comparison in enumerate(cases.comparisons(['layer', 'backbone'], quick=False)):
        baseline, *others = comparison.candidates
        results.times += [
            measure.Measurement(
                str(comparison), mode, name, baseline, 10.0 + i, 2.0 + i, 5.0, (5.0, 5.0)
            )
            for name in others
            for mode in comparison.modes
        ]
    (tmp_path / 'times.csv').write_text(results.to_csv())
    return tmp_path / 'times.csv'


def test_bars_are_the_times_of_training_steps(times):
    found = chart.read_times(times)
    left, right = chart.draw(found).axes
    sizes = ['64x200x334', '128x100x167', '256x50x84', '512x25x42']
    assert [text.get_text() for text in left.get_xticklabels()] == sizes
    names = [text.get_text().split('\n')[0] for text in right.get_xticklabels()]
    assert names == ['ResNet-50', 'Swin-T', 'PVT-T']
    heights = [[bar.get_height() for bar in bars] for bars in left.containers]
    assert heights == [
        [found[f'layer {size}'][kind] for size in sizes]
        for kind in ('released', 'acmix', 'conv3x3')
    ]
    assert sum(map(len, map(set, heights))) == 4 * 3, 'all times are different'
    ours, plain = ([bar.get_height() for bar in bars] for bars in right.containers)
    assert plain == [time + 8 for time in ours]


def test_writes_a_picture(times, tmp_path):
    chart.main([str(times), str(tmp_path / 'new' / 'speed.png')])
    assert (tmp_path / 'new' / 'speed.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    ('content', 'says'),
    [(None, 'cannot be read: No such file'), ('mode\n', 'layer 64x200x334 is missing')],
)
def test_files_that_cannot_be_drawn(tmp_path, content, says):
    if content:
        (tmp_path / 'times.csv').write_text(content)
    with pytest.raises(SystemExit, match=says):
        chart.main([str(tmp_path / 'times.csv'), str(tmp_path / 'speed.png')])
