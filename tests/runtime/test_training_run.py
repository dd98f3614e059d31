"""Commands that are ended."""

import sys
import threading
import time

import pytest

from acmix_mm.runtime import training_run
from acmix_mm.runtime.training_run import TrainingRun, end_all, read_scalars

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def run(tmp_path):
    return TrainingRun('config.py', tmp_path / 'run')


def test_what_ignores_sigterm_is_killed(run, monkeypatch):
    monkeypatch.setattr(training_run, 'SECONDS_TO_END', 0.5)
    ended = []
    thread = threading.Thread(
        target=lambda: ended.append(run.run([[sys.executable, '-c', STUBBORN], ['true']]))
    )
    thread.start()
    while not run.log.exists() or not run.log.read_text().splitlines()[1:]:
        time.sleep(0.02)
    end_all([run])
    thread.join(10)
    assert ended == [False]
    assert run.log.read_text().count('$ ') == 1, 'the next command was not started'


def test_nothing_starts_after_the_end(run):
    """A run may be ended before its first command, which is still being prepared."""
    end_all([run])
    assert run.run([['touch', str(run.work_dir / 'started')]]) is False
    assert not (run.work_dir / 'started').exists()


def test_runs_commands_until_one_fails(run):
    made = [str(run.work_dir / name) for name in 'ab']
    assert run.run([['touch', made[0]]]) is True
    assert run.run([['false'], ['touch', made[1]]]) is False
    assert sorted(path.name for path in run.work_dir.iterdir()) == ['a', 'train_and_test.log']


def test_line_of_a_log_that_was_cut_off(run, capsys):
    logs = run.work_dir / '20260101' / 'vis_data'
    logs.mkdir(parents=True)
    (logs / 'scalars.json').write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_scalars(run.work_dir) == [dict(step=1, loss=2.0)]
    assert 'scalars.json, line 2, is left out' in capsys.readouterr().err
