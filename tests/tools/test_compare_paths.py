"""tools/analysis/compare_paths.py: statistics by hand, and tiny trainings."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from scipy import stats

ROOT = Path(__file__).parents[2]
CONFIG = """
_base_ = 'acmix_mm::demo/sem-fpn_resnet26-acmix_shapes.py'
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=1), logger=dict(interval=1))
loader = dict(num_workers=0, persistent_workers=False, batch_size=2)
train_dataloader = dict(dataset=dict(data_root={data!r}), **loader)
val_dataloader = dict(dataset=dict(data_root={data!r}), **loader)
test_dataloader = val_dataloader
visualizer = dict(name='compared')  # mmengine has one of a name in a process
"""


@pytest.fixture
def tool_module(tool):
    return tool('analysis/compare_paths.py')


def result(tool_module, mode, seed, value, **changes):
    fields = dict(steps=450, metric='box AP', loss=0.5, seconds=10.0, params=565_000, macs=167_000)
    return tool_module.Result('bccd', mode, seed, value=value, **fields | changes)


@pytest.fixture
def results(tool_module):
    """Three seeds of three modes; `plain` has a run that has no partner."""
    values = dict(learned=[50, 52, 54], attention=[47, 48, 52], plain=[51, 50, 55, 60])
    return [
        result(tool_module, mode, seed, value)
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
            close.append(result(tool_module, mode, r.seed, r.value - offset - noise))
    found = tool_module.compare(close)
    widths = sorted(d.half_width for d in found.values())
    risks = [0.05, 0.05 / 2, 0.05 / 3]
    assert widths == pytest.approx([stats.t.ppf(1 - r / 2, 2) * 0.01 / 3**0.5 for r in risks])
    assert found['bccd', 'attention'].verdict == 'better'
    assert found['bccd', 'plain'].verdict == 'worse'


def test_equal_results_are_no_difference(tool_module, results):
    learned = [r for r in results if r.mode == 'learned']
    same = [result(tool_module, 'plain', r.seed, r.value) for r in learned]
    difference = tool_module.compare([*learned, *same])['bccd', 'plain']
    assert (difference.mean, difference.half_width) == (0, 0)
    assert difference.verdict == 'too few values', 'equal gains say nothing about their spread'


def test_equal_gains_of_a_rounded_metric_give_no_verdict(tool_module):
    """50.1 - 50.0 and 48.7 - 48.6 are not equal as binary numbers, but as results."""
    values = dict(
        learned=(50.1, 48.7, 49.0), attention=(50.0, 48.6, 48.9), plain=(49.1, 47.75, 48.1)
    )
    rows = [
        result(tool_module, mode, seed, value)
        for mode, list_ in values.items()
        for seed, value in enumerate(list_)
    ]
    found = tool_module.compare(rows)
    assert found['bccd', 'attention'].verdict == 'too few values'
    # It is not rejected, so that the other one is tested at 2.5 %: gains 1, 0.95, 0.9.
    assert found['bccd', 'plain'].half_width == pytest.approx(
        stats.t.ppf(1 - 0.025 / 2, 2) * 0.05 / 3**0.5
    )


def test_later_rows_change_no_verdict_on_the_main_modes(tool_module, results):
    """They are a family of their own."""
    more = [result(tool_module, f'wide{i}', seed, seed**i) for i in range(9) for seed in range(3)]
    before, after = tool_module.compare(results), tool_module.compare([*results, *more])
    assert len(after) == 2 + 9
    assert {key: after[key] for key in before} == before
    alone = tool_module.compare([r for r in results if r.mode == 'learned'] + more[:3])
    assert alone['bccd', 'wide0'].half_width < after['bccd', 'wide0'].half_width


def test_modes_are_what_they_are_called(tool_module):
    """The backbone and the optimizer of each mode, from the options on its command line."""
    configs = [str(config) for config in tool_module.CONFIGS]
    for config in configs:
        sizes = {
            mode: tool_module.steps_and_size(config, tuple(tool_module.MODES[mode]))[1]
            for mode in ('learned', 'attention', 'plain', 'attention-wide', 'convolution-wide')
        }
        assert sizes['attention'].macs < sizes['learned'].macs < sizes['attention-wide'].macs
        assert sizes['learned'].macs < sizes['convolution-wide'].macs
        assert sizes['plain'].params > sizes['learned'].params > sizes['attention'].params
        modes = [('fast-mix', 2e-3, 2e-2), ('plain-lr4e-3', 4e-3, None)]
        for mode, rate, fast in modes:
            job = tool_module.Job(Path(config), mode, 0, Path(), tool_module.MODES[mode])
            cfg = job.run.read_config()
            init_default_scope(cfg.default_scope)
            model = MODELS.build(cfg.model)
            groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
            names = {id(parameter): name for name, parameter in model.named_parameters()}
            rates = {names[id(group['params'][0])]: group['lr'] for group in groups}
            mixes = {name for name in rates if '.mix.' in name}
            assert {rates[name] for name in mixes} == ({fast} if fast else set())
            assert len(mixes) == (16 if fast else 0)
            assert {rate for name, rate in rates.items() if name not in mixes} == {rate}
            decays = {
                group['weight_decay'] for group in groups if names[id(group['params'][0])] in mixes
            }
            assert decays == ({0.0} if fast else set())


def test_equal_seconds(tool_module, results, tmp_path, capsys):
    """The fastest step of `plain` takes half as long as that of `learned`: it gets twice as many.

    Start and test, which are in the seconds of results.csv, do not count.
    """
    config = tool_module.CONFIGS[0]
    for mode, seed, times in (
        ('learned', 0, (0.9, 0.6)), ('learned', 1, (0.8, 0.7)), ('plain', 0, (0.3, 0.4)),
    ):  # fmt: skip
        log = tmp_path / config.stem / mode / f'seed{seed}' / 'time' / 'vis_data' / 'scalars.json'
        log.parent.mkdir(parents=True)
        rows = [dict(step=1, loss=1.0, time=time) for time in times]
        log.write_text('\n'.join(map(json.dumps, [*rows, dict(step=1, mIoU=1.0, time=0.1)])))
    argv = [
        str(config),
        '--seeds',
        '1',
        '--equal-seconds',
        '--work-dir',
        str(tmp_path),
        '--dry-run',
    ]
    tool_module.main([*argv, '--modes', 'learned', 'plain'])
    train, test = capsys.readouterr().out.splitlines()
    assert test.split()[3] == str(tmp_path / config.stem / 'plain-equal-seconds/seed0/iter_900.pth')
    options = train.partition('--cfg-options ')[2]
    cfg = tool_module.TrainingRun(str(config), tmp_path, options.split()).read_config()
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (900, 900)
    assert [part.get('T_max') for part in cfg.param_scheduler] == [None, 900]
    assert cfg.param_scheduler[0].end == 50
    assert 'path_weights' not in options
    assert 'stage_with_acmix' in options
    with pytest.raises(SystemExit, match=r'seconds: .*/attention has no log of a training'):
        tool_module.main([*argv, '--modes', 'attention'])
    known = result(tool_module, 'plain-equal-seconds', 7, 50.0, steps=850)
    known = replace(known, config=config.stem)
    tool_module.write_results([known], tmp_path)
    capsys.readouterr()
    tool_module.main([*argv, '--modes', 'plain'])
    assert 'iter_850.pth' in capsys.readouterr().out, 'all seeds of a row have the same steps'
    epochs = tmp_path / 'epochs.py'
    epochs.write_text('train_cfg = dict(by_epoch=True, max_epochs=3)')
    with pytest.raises(SystemExit, match=r'epochs\.py counts epochs'):
        tool_module.main([str(epochs), '--quick', '--dry-run'])


def test_quick_runs(tool_module, tmp_path, capsys):
    config, argv = tool_module.CONFIGS[1], ['--seeds', '1', '--quick', '--dry-run']
    tool_module.main([str(config), *argv, '--modes', 'plain', '--work-dir', str(tmp_path)])
    train, test = capsys.readouterr().out.splitlines()
    assert 'plain/seed0/iter_10.pth' in test
    options = train.partition('--cfg-options ')[2]
    cfg = tool_module.TrainingRun(str(config), tmp_path, options.split()).read_config()
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (10, 10)
    assert [part.get('T_max') for part in cfg.param_scheduler] == [None, 10]
    with pytest.raises(SystemExit):
        tool_module.main([*argv, '--equal-seconds'])
    assert 'not allowed with argument --quick' in capsys.readouterr().err


def test_runs_with_other_options_are_not_mixed(tool_module, tmp_path, monkeypatch):
    """results.csv does not name the options, and runs that are there are not run again."""
    monkeypatch.setattr(
        tool_module.TrainingRun, 'run', lambda run, _: run.work_dir.mkdir(0o777, True, True)
    )
    config = str(tool_module.CONFIGS[0])

    def start(folder, *options):
        argv = [config, '--modes', 'plain', '--seeds', '1', '--work-dir', str(tmp_path / folder)]
        with pytest.raises(SystemExit) as error:
            tool_module.main([*argv, *options])
        return str(error.value)

    longer = ('--options', 'train_cfg.max_iters=900', 'model.init_cfg=None')
    assert '1 of 1 runs failed' in start('default')
    assert '1 of 1 runs failed' in start('default')
    says = 'default have no options, and these have train_cfg.max_iters=900 model.init_cfg=None: '
    assert says in start('default', *longer)
    assert 'default have no options, and these have --quick: ' in start('default', '--quick')
    assert '1 of 1 runs failed' in start('longer', *longer)
    assert '1 of 1 runs failed' in start('longer', *longer)
    assert 'max_iters=900 model.init_cfg=None, and these have none: ' in start('longer')
    (tmp_path / 'default' / 'options').unlink()  # as versions without this file left it
    assert 'these have --quick: ' in start('default', '--quick')


def test_one_command_in_a_work_dir(tool_module, tmp_path):
    """A second one would overwrite results.csv without the runs of the first one."""
    code = """
import sys
from pathlib import Path
from acmix_mm.runtime.work_dir import locked_folder
with locked_folder(Path(sys.argv[1])):
    print(flush=True)
    input()
"""
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], **pipes) as other:
        other.stdout.readline()
        with pytest.raises(SystemExit, match=rf'Another command runs in .*: process {other.pid} '):
            tool_module.main(['--work-dir', str(tmp_path)])
        other.communicate(b'\n')


def test_ten_steps_are_repeated_bit_by_bit(tool, tool_module, shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'tiny.py').write_text(CONFIG.format(data=str(shapes)))

    def train(folder):
        options = ['train_cfg.max_iters=10', 'default_hooks.checkpoint.interval=5']
        options.append(f'visualizer.name={folder}')
        job = tool_module.Job(Path('tiny.py'), 'learned', 0, Path(folder), options)
        (_, script, *arguments), _ = job.run.commands()
        tool(Path(script).name).main(arguments)
        return [
            torch.load(job.run.work_dir / f'iter_{i}.pth', weights_only=False)['state_dict']
            for i in (5, 10)
        ]

    (half, first), (_, again) = train('first'), train('again')
    assert not [name for name in first if not torch.equal(first[name], again[name])]
    assert [name for name in first if not torch.equal(first[name], half[name])], 'it learns'


def test_other_seeds(tool_module, capsys):
    config = str(tool_module.CONFIGS[0])
    tool_module.main(
        [config, '--dry-run', '--first-seed', '100', '--seeds', '2', '--modes', 'plain']
    )
    out = capsys.readouterr().out
    assert [f'randomness.seed={seed}' in out for seed in (99, 100, 101, 102)] == [
        False, True, True, False,
    ]  # fmt: skip


def test_page_is_written_from_the_csv(tool_module, results, tmp_path):
    tool_module.write_results(results, tmp_path)
    csv = (tmp_path / 'results.csv').rename(tmp_path / 'cells.csv')
    page, argv = tmp_path / 'page.md', ['--report', str(csv), '--page', str(tmp_path / 'page.md')]
    page.write_text('no marks\n')
    with pytest.raises(SystemExit, match='the page must have the lines'):
        tool_module.main(argv)
    marks = [
        f'<!-- {name}: {words} -->'
        for name in ('cells_answer', 'cells')
        for words in ('written by tools/analysis/compare_paths.py', 'end')
    ]
    page.write_text('\n'.join(['above', *marks, 'below']))
    tool_module.main(argv)
    text = page.read_text()
    assert text.startswith(
        f'above\n{marks[0]}\n| config | metric | learned minus attention |'
        ' learned minus convolution | learned minus plain |\n|---|---|---|---|---|\n'
        '| bccd | box AP | +3.00 ± 3.58: no difference seen |  | +0.00 ± 6.21: no difference seen |'
        f'\n{marks[1]}\n{marks[2]}\nbccd:\n\n| mode |'
    )
    assert text.endswith(f'{marks[3]}\nbelow')
    assert '](images/page_cells.png)' in text
    assert (tmp_path / 'images' / 'page_cells.png').read_bytes().startswith(b'\x89PNG')
    with pytest.raises(SystemExit):
        tool_module.main(['--page', str(page)])


def test_results_that_cannot_be_compared(tool_module, results, tmp_path):
    with pytest.raises(SystemExit, match='No such file'):
        tool_module.main(['--report', str(tmp_path / 'r.csv'), '--work-dir', str(tmp_path)])
    assert not list(tmp_path.iterdir()), 'nothing is overwritten'
    tool_module.write_results(results, tmp_path)
    text = (tmp_path / 'results.csv').read_text()
    (tmp_path / 'r.csv').write_text(text.replace(',50,', ',nan,'))
    (tmp_path / 's.csv').write_text('a,b\n1,2\n')
    for name, says in (
        ('r', 'has the value nan for'),
        ('s', 'has the columns a, b; needed are config'),
    ):
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
    tool_module, tool, shapes, tmp_path, monkeypatch, capsys
):
    """`balanced` is trained and tested in this process; `plain` fails, and then has a result."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'tiny.py').write_text(CONFIG.format(data=str(shapes)))
    plain_fails = True

    def run(self, commands):
        self.work_dir.mkdir(parents=True, exist_ok=True)
        with self.log.open('a') as log:
            log.writelines(f'{command}\n' for command in commands)
        if 'plain' not in self.work_dir.parts:
            for _, script, *arguments in commands:
                tool(Path(script).name).main(arguments)
        elif plain_fails:
            return False
        else:
            (self.work_dir / 'test' / '1').mkdir(parents=True)
            (self.work_dir / 'test' / '1' / '1.json').write_text('{"mIoU": 12.3456}')
        return True

    monkeypatch.setattr(tool_module.TrainingRun, 'run', run)
    argv = ['tiny.py', '--seeds', '1', '--modes', 'balanced', 'plain', '--work-dir', 'w']
    with pytest.raises(SystemExit, match='1 of 2 runs failed:\ntiny plain seed 0: see the end of'):
        tool_module.main(argv)
    plain_fails = False
    log = tmp_path / 'w/tiny/balanced/seed0/train_and_test.log'
    before = log.stat().st_mtime_ns
    (tmp_path / 'w' / 'results.csv').unlink()  # it is collected anew
    tool_module.main(argv)
    assert log.stat().st_mtime_ns == before
    first, second = tool_module.read_results(tmp_path / 'w' / 'results.csv')
    assert (first.mode, first.metric, first.steps) == ('balanced', 'mIoU', 2)
    assert first.seconds > 0
    assert first.loss > 0
    assert (second.mode, second.value, second.seconds > 0) == ('plain', 12.346, True)
    assert first.params != second.params
    checkpoint = torch.load(tmp_path / 'w/tiny/balanced/seed0/iter_2.pth', weights_only=False)
    weights = checkpoint['state_dict']
    alphas = [value.item() for name, value in weights.items() if name.endswith('.alpha')]
    assert len(alphas) == 8
    assert all(abs(alpha - 0.5) > 0.02 for alpha in alphas), 'an update moves them by less'
    capsys.readouterr()
    tool_module.main([*argv, '--dry-run'])
    assert not capsys.readouterr().out, 'nothing is left to do'


def test_trainings_use_one_thread(tool_module, tmp_path):
    job = tool_module.Job(tmp_path / 'x.py', 'learned', 0, tmp_path, [])
    assert job.run.run([['python', '-c', 'import os; print(os.environ["OMP_NUM_THREADS"])']])
    assert job.run.log.read_text().splitlines()[-1] == '1'


def test_config_that_is_missing(tool_module, tmp_path):
    with pytest.raises(SystemExit, match=r'missing\.py cannot be read'):
        tool_module.main([str(tmp_path / 'missing.py'), '--dry-run', '--work-dir', str(tmp_path)])


def test_run_that_is_reported_twice(tool_module, results, tmp_path):
    tool_module.write_results(results, tmp_path)
    csv = str(tmp_path / 'results.csv')
    with pytest.raises(SystemExit, match='a second result of bccd learned seed 0'):
        tool_module.main(['--report', csv, csv, '--work-dir', str(tmp_path)])


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


def test_page_of_the_docs_is_that_of_its_csv(tool_module, tmp_path):
    page = Path(shutil.copy(ROOT / 'docs' / 'evidence.md', tmp_path))
    csv = ROOT / 'docs' / 'evidence' / 'results.csv'
    tool_module.main(['--report', str(csv), '--page', str(page)])
    assert page.read_text() == (ROOT / 'docs' / 'evidence.md').read_text()
