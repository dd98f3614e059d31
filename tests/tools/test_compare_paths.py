"""tools/analysis/compare_paths.py: statistics by hand, and tiny trainings."""

import time

import pytest
from scipy import stats

CONFIG = """
_base_ = 'acmix_mm::demo/sem-fpn_resnet26-acmix_shapes.py'
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=1))
loader = dict(num_workers=0, persistent_workers=False, batch_size=2)
train_dataloader = dict(dataset=dict(data_root={data!r}), **loader)
val_dataloader = dict(dataset=dict(data_root={data!r}), **loader)
test_dataloader = val_dataloader
"""


@pytest.fixture
def tool_module(tool):
    return tool('analysis/compare_paths.py')


@pytest.fixture
def results(tool_module):
    """Three seeds of three modes; `plain` has a run that has no partner."""
    values = dict(learned=[50, 52, 54], attention=[47, 48, 52], plain=[51, 50, 55, 60])
    return [
        tool_module.Result('bccd', mode, seed, 'box AP', value, 10.0)
        for mode, list_ in values.items()
        for seed, value in enumerate(list_)
    ]


def test_differences_are_paired_by_seed(tool_module, results):
    found = tool_module.compare(results)
    # Gains 3, 4, 2: mean 3, standard deviation 1, standard error 1 / sqrt(3); p = 0.035.
    attention = found['bccd', 'attention']
    assert attention.mean == 3
    # The smaller p value of two is compared with 2.5 %, which it exceeds.
    expected = stats.t.ppf(1 - 0.025 / 2, 2) / 3**0.5
    assert attention.half_width == pytest.approx(expected)
    assert attention.half_width == pytest.approx(3.582, abs=1e-3)
    assert (attention.same_sign, attention.seeds) == (3, 3)
    assert attention.verdict == 'no difference seen'
    # Gains -1, 2, -1: as the other one was not significant, the level stays.
    plain = found['bccd', 'plain']
    assert plain.mean == 0
    assert plain.half_width == pytest.approx(stats.t.ppf(1 - 0.025 / 2, 2))
    assert plain.seeds == 3


def test_level_grows_after_each_significant_difference(tool_module, results):
    close = [r for r in results if r.mode == 'learned']
    for mode, offset in (('attention', 3.0), ('convolution', 1.0), ('plain', -1.0)):
        for r, noise in zip(close[:3], (0.0, 0.01, -0.01), strict=True):
            close.append(
                tool_module.Result('bccd', mode, r.seed, 'box AP', r.value - offset - noise, 1)
            )
    found = tool_module.compare(close)
    widths = sorted(d.half_width for d in found.values())
    risks = [0.05, 0.05 / 2, 0.05 / 3]
    assert widths == pytest.approx([stats.t.ppf(1 - r / 2, 2) * 0.01 / 3**0.5 for r in risks])
    assert found['bccd', 'attention'].verdict == 'better'
    assert found['bccd', 'plain'].verdict == 'worse'


def test_equal_results_are_no_difference(tool_module, results):
    learned = [r for r in results if r.mode == 'learned']
    same = [tool_module.Result('bccd', 'plain', r.seed, 'box AP', r.value, 1) for r in learned]
    difference = tool_module.compare([*learned, *same])['bccd', 'plain']
    assert (difference.mean, difference.half_width) == (0, 0)
    assert difference.verdict == 'too few values', 'equal gains say nothing about their spread'


def test_results_that_cannot_be_compared(tool_module, results, tmp_path):
    with pytest.raises(SystemExit, match='No such file'):
        tool_module.main(['--report', str(tmp_path / 'r.csv'), '--work-dir', str(tmp_path)])
    assert not list(tmp_path.iterdir()), 'nothing is overwritten'
    tool_module.write_results(results, tmp_path)
    text = (tmp_path / 'results.csv').read_text()
    (tmp_path / 'r.csv').write_text(text.replace('50', 'nan'))
    (tmp_path / 's.csv').write_text('a,b\n1,2\n')
    for name, says in (('r', 'has the value nan for'), ('s', 'is no table of results')):
        with pytest.raises(SystemExit, match=says):
            tool_module.main(
                ['--report', str(tmp_path / f'{name}.csv'), '--work-dir', str(tmp_path)]
            )
    assert (tmp_path / 'results.csv').read_text() == text


def test_configs_of_one_name_are_refused(tool_module, capsys):
    with pytest.raises(SystemExit):
        tool_module.main(['a/x.py', 'b/x.py'])
    assert 'several configs are called x' in capsys.readouterr().err


def test_data_root_is_that_of_the_config(tool_module, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tool_module.main(['--dry-run', '--seeds', '1', '--modes', 'learned', '--data-root', '/data'])
    out = capsys.readouterr().out
    assert 'data_root=/data/bccd/' in out
    assert 'data_root=/data/camvid/' in out


def test_report_is_made_from_the_csv_alone(tool_module, results, tmp_path, capsys):
    tool_module.write_results(results, tmp_path / 'first')
    assert tool_module.read_results(tmp_path / 'first' / 'results.csv') == results
    csv = tmp_path / 'first' / 'results.csv'
    tool_module.main(['--report', str(csv), '--work-dir', str(tmp_path / 'second')])
    text = (tmp_path / 'second' / 'results.md').read_text()
    assert text == (tmp_path / 'first' / 'results.md').read_text()
    assert '| attention | 3 | 49.00 | 2.65 | +3.00 ± 3.58 | 3 of 3 | no difference seen |' in text
    assert text in capsys.readouterr().out
    assert (tmp_path / 'second' / 'results.png').read_bytes().startswith(b'\x89PNG')


def test_trains_skips_what_is_done_and_goes_on_after_a_failure(
    tool_module, shapes, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'tiny.py').write_text(CONFIG.format(data=str(shapes)))
    argv = [
        'tiny.py',
        '--seeds',
        '1',
        '--jobs',
        '2',
        '--modes',
        'learned',
        'plain',
        '--work-dir',
        'w',
    ]
    monkeypatch.setitem(tool_module.MODES, 'plain', ['model.backbone.depth=27'])
    with pytest.raises(SystemExit, match='1 of 2 runs failed:\ntiny plain seed 0: see the end of'):
        tool_module.main(argv)
    assert 'depth' in (tmp_path / 'w/tiny/plain/seed0/train_and_test.log').read_text()
    monkeypatch.setitem(
        tool_module.MODES, 'plain', ['model.backbone.stage_with_acmix=(False,False,False,False)']
    )
    before = (tmp_path / 'w/tiny/learned/seed0/train_and_test.log').stat().st_mtime_ns
    tool_module.main(argv)
    assert (tmp_path / 'w/tiny/learned/seed0/train_and_test.log').stat().st_mtime_ns == before
    rows = tool_module.read_results(tmp_path / 'w' / 'results.csv')
    assert [(row.mode, row.metric, row.seconds > 0) for row in rows] == [
        ('learned', 'mIoU', True),
        ('plain', 'mIoU', True),
    ]
    tool_module.main([*argv, '--dry-run'])
    assert 'train.py' not in capsys.readouterr().out.splitlines()[-1], 'nothing is left to do'


def test_interrupt_ends_the_trainings(tool_module, tmp_path, monkeypatch):
    """All processes end, and the jobs that wait do not start."""
    started = []

    def run(job):
        started.append(job)
        if job.seed > 0:
            job.run.run([['sleep', '60']])
        while job.seed == 0 and not any(other.run._process for other in jobs):
            time.sleep(0.01)

    def interrupt(job):
        raise KeyboardInterrupt  # when the first job is announced as done

    monkeypatch.setattr(tool_module.Job, 'train_and_test', run)
    monkeypatch.setattr(tool_module.Job, '__str__', interrupt)
    jobs = [tool_module.Job(tmp_path / 'x.py', 'learned', i, tmp_path, []) for i in range(5)]
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        tool_module.run_jobs(jobs, 2)
    assert time.monotonic() - begun < 20
    running = [job.run._process for job in started if job.run._process is not None]
    assert len(running) in (1, 2)
    assert all(process.poll() is not None for process in running)
    assert len(started) < len(jobs)
