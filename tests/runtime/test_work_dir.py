"""Which checkpoint a training resumes from, and that only one training runs in a work dir."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_training import tiny_config

from acmix_mm.runtime.work_dir import LOCK, locked, newest_checkpoint, resume


def save(path: Path, iteration: int, time: str = '20260101_000000', **meta) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = dict(
        meta=dict(iter=iteration, epoch=iteration, time=time, seed=7, **meta),
        state_dict={'weight': torch.rand(1000)},
        message_hub={},
    )
    torch.save(content, path)
    return path


@pytest.fixture
def run(tmp_path):
    """Return the config of a training with checkpoints of 9, 10 and 11 epochs."""
    for epoch in (9, 10, 11):
        save(tmp_path / 'run' / f'epoch_{epoch}.pth', epoch)
    return tiny_config(tmp_path / 'run')


def newest(cfg) -> str | None:
    path = newest_checkpoint(cfg)
    return path.name if path else None


@pytest.mark.parametrize('content', [None, '', '/gone/epoch_7.pth', '\n'])
def test_last_checkpoint_does_not_matter(run, content):
    if content is not None:
        Path(run.work_dir, 'last_checkpoint').write_text(content)
    assert newest(run) == 'epoch_11.pth'


def test_moved_and_copied_folder(run, tmp_path):
    shutil.move(run.work_dir, tmp_path / 'moved')
    assert newest(tiny_config(tmp_path / 'moved')) == 'epoch_11.pth'
    for epoch in (11, 10, 9):  # the newest file is the oldest checkpoint
        name = f'epoch_{epoch}.pth'
        (tmp_path / 'copied').mkdir(exist_ok=True)
        shutil.copy(tmp_path / 'moved' / name, tmp_path / 'copied' / name)
    assert newest(tiny_config(tmp_path / 'copied')) == 'epoch_11.pth'


def test_a_training_that_began_again_is_newer(run):
    save(Path(run.work_dir, 'epoch_1.pth'), 1, time='20260102_000000')
    assert newest(run) == 'epoch_1.pth'


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    ('damage', 'reason'),
    [
        (cut, 'is not a checkpoint written by torch.save'),
        (lambda data: b'', 'is not a checkpoint written by torch.save'),
        (lambda data: data[:-1000] + bytes(1000), 'is not a checkpoint written by torch.save'),
        (lambda data: bytes(len(data)), 'is not a checkpoint written by torch.save'),
        (flip, 'it is damaged: the checksum of'),
    ],
    ids=['cut', 'empty', 'zeros at the end', 'zeros', 'one bit'],
)
def test_damaged_checkpoints_are_passed_over(run, capsys, damage, reason):
    for epoch in (10, 11):
        file = Path(run.work_dir, f'epoch_{epoch}.pth')
        file.write_bytes(damage(file.read_bytes()))
    assert newest(run) == 'epoch_9.pth'
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 2
    for epoch, line in zip((10, 11), sorted(printed), strict=True):
        assert line.startswith(f'Passed over {run.work_dir}/epoch_{epoch}.pth: ')
        assert reason in line


def test_files_that_are_no_states_of_a_training(run, capsys):
    torch.save({'state_dict': {}}, Path(run.work_dir, 'epoch_12.pth'))
    save(Path(run.work_dir, 'best_score_epoch_13.pth'), 13)
    assert newest(run) == 'epoch_11.pth'
    assert 'epoch_12.pth is not the state of a training' in capsys.readouterr().err


def test_options_of_the_hook(tmp_path):
    save(tmp_path / 'elsewhere/run/step-4.pth', 4)
    options = dict(out_dir=str(tmp_path / 'elsewhere'), filename_tmpl='step-{}.pth')
    assert newest(tiny_config(tmp_path / 'run', **options)) == 'step-4.pth'
    save(tmp_path / 'run/iter_40.pth', 40)
    assert newest(tiny_config(tmp_path / 'run', by_epoch=False)) == 'iter_40.pth'
    assert newest(tiny_config(tmp_path / 'run')) is None


@pytest.mark.parametrize(
    ('template', 'name', 'other'),
    [
        ('epoch_{:03d}.pth', 'epoch_004.pth', 'iter_004.pth'),
        ('[a]{}.pth', '[a]4.pth', 'a5.pth'),
        ('{{x}}_{0}.pth', '{x}_4.pth', 'x_5.pth'),
        ('newest.pth', 'newest.pth', 'newest_5.pth'),
    ],
)
def test_templates_of_names(tmp_path, template, name, other):
    save(tmp_path / 'run' / name, 4)
    save(tmp_path / 'run' / other, 5)
    assert newest(tiny_config(tmp_path / 'run', filename_tmpl=template)) == name


def test_resume(run, tmp_path, capsys):
    run.randomness = dict(seed=None, deterministic=True)
    resume(run, 'auto')
    assert run.resume
    assert run.load_from == f'{run.work_dir}/epoch_11.pth'
    assert run.randomness == dict(seed=7, deterministic=True)

    run.randomness.seed = 3
    resume(run, f'{run.work_dir}/epoch_9.pth')
    assert run.load_from == f'{run.work_dir}/epoch_9.pth'
    assert run.randomness.seed == 3, 'given by the user'

    fresh = tiny_config(tmp_path / 'fresh')
    fresh.load_from = 'pretrained.pth'
    resume(fresh, 'auto')
    assert (fresh.resume, fresh.load_from) == (False, 'pretrained.pth')
    assert 'No checkpoint to resume from' in capsys.readouterr().err


def test_resume_needs_the_state_of_a_training(run, tmp_path, monkeypatch):
    torch.save({'state_dict': {}}, tmp_path / 'weights.pth')
    with pytest.raises(
        SystemExit, match=r'weights\.pth is not the state .*, only weights\. --resume'
    ):
        resume(run, str(tmp_path / 'weights.pth'))
    monkeypatch.setenv('LOCAL_RANK', '1')  # the first process says it
    resume(run, str(tmp_path / 'weights.pth'))


@pytest.mark.parametrize('saved', ['shards', 'remote'])
def test_what_only_mmengine_can_find(run, tmp_path, saved):
    if saved == 'shards':
        (tmp_path / 'run/epoch_12.pth').mkdir()
    else:
        run.default_hooks.checkpoint.out_dir = 's3://bucket/trainings'
    run.load_from = 'pretrained.pth'
    resume(run, 'auto')
    assert (run.resume, run.load_from) == (True, None)


HOLD = """
import sys
from mmengine.config import Config
from acmix_mm.runtime.work_dir import locked
with locked(Config(dict(work_dir=sys.argv[1], launcher='none'))):
    print('locked', flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Start another process that holds the lock."""
    command = [sys.executable, '-c', HOLD, str(tmp_path)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == 'locked\n'
        yield process
        process.kill()


def test_one_training_in_a_work_dir(other, tmp_path):
    cfg = tiny_config(tmp_path)
    with pytest.raises(SystemExit) as error, locked(cfg):
        pass
    message = str(error.value)
    assert message.startswith(f'Another command runs in {tmp_path}: process {other.pid} on ')
    assert '--work-dir' in message

    other.kill()
    other.wait()
    assert (tmp_path / LOCK).read_text().startswith(f'process {other.pid} on ')
    with locked(cfg):  # the killed process has left only the file
        assert (tmp_path / LOCK).read_text().startswith(f'process {os.getpid()} on ')


def test_other_processes_of_the_job_do_not_lock(other, tmp_path, monkeypatch):
    cfg = tiny_config(tmp_path)
    cfg.launcher = 'pytorch'
    monkeypatch.setenv('RANK', '1')
    with locked(cfg):
        pass
    monkeypatch.setenv('RANK', '0')
    with pytest.raises(SystemExit, match='Another command'), locked(cfg):
        pass


def test_a_work_dir_that_cannot_be_made(tmp_path):
    (tmp_path / 'file').touch()
    cfg = tiny_config(tmp_path / 'file/run')
    error = pytest.raises(SystemExit, match=r'work dir .*file/run cannot be used: Not a directory')
    with error, locked(cfg):
        pass


def test_a_system_without_locks(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'fcntl', None)
    with locked(tiny_config(tmp_path)):
        pass
    assert 'cannot be locked on this system: start only one command' in capsys.readouterr().err
