"""Trainings that are killed go on, to the bit, as if they had not been.

benchmarks/stress.py does the same with demo models, and more often.
"""

import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from tiny_training import TinyMetric, tiny_config

from acmix_mm import runtime
from acmix_mm.checkpoints.files import read_checkpoint
from acmix_mm.hooks import ResumableCheckpointHook
from acmix_mm.hooks.checkpoint import _RemovesLater
from acmix_mm.runtime import build_runner, resume
from acmix_mm.runtime.saving import name_checkpoint_hook
from benchmarks import stress
from tools import train as train_tool

LAST = {True: 'epoch_4.pth', False: 'iter_16.pth'}


@pytest.fixture(autouse=True)
def quick_runner(monkeypatch):
    """Leave out what takes most of the time of a tiny training."""
    monkeypatch.setattr(Config, 'pretty_text', Config.pretty_text)
    monkeypatch.setattr(stress.mmengine_runner, 'collect_env', dict)
    stress.leave_out_descriptions()


def train(work_dir: Path, by_epoch: bool = True, workers: int = 0, **hook):
    cfg = tiny_config(work_dir, by_epoch, workers, **hook)
    resume(cfg, 'auto')
    return runtime.train(cfg)


def weights(file: Path) -> dict:
    return read_checkpoint(file)['state_dict']


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope='module', params=[True, False], ids=['epochs', 'iterations'])
def whole(request, tmp_path_factory):
    """Return a training that was not interrupted: by epochs or not, its work dir."""
    work_dir = tmp_path_factory.mktemp('whole')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Config, 'pretty_text', property(lambda self: ''))
        train(work_dir, request.param)
    return request.param, work_dir


# Those of the second save, which removes the checkpoint of the first.
TRIALS = [*stress.points_of_writing(2)][8:] + [*stress.full_disks(2)][1:]


@pytest.mark.parametrize('trial', TRIALS, ids=lambda trial: trial.name.replace(' ', '-'))
def test_killed_while_saving(whole, tmp_path, trial):
    by_epoch, work_dir = whole
    expected = weights(work_dir / LAST[by_epoch])
    again = partial(train, by_epoch=by_epoch, max_keep_ckpts=1)
    assert not stress.survives(again, tmp_path / 'run', trial, LAST[by_epoch], expected)


def test_full_disk_is_one_message_and_keeps_the_former_checkpoint(tmp_path):
    work_dir = tmp_path / 'run'
    again = partial(train, max_keep_ckpts=1)
    assert stress.run(again, work_dir, [*stress.full_disks(2)][1])
    log = work_dir.with_suffix('.log').read_text()
    file = work_dir / 'epoch_2.pth'
    message = f'The checkpoint {file} cannot be written: File too large. The one before it is kept.'
    assert log.splitlines()[-1].startswith(message)
    assert 'Traceback' not in log
    assert [file.name for file in work_dir.glob('*.pth')] == ['epoch_1.pth']
    assert read_checkpoint(work_dir / 'epoch_1.pth')['meta']['epoch'] == 1
    assert (work_dir / 'last_checkpoint').read_text() == str(work_dir / 'epoch_1.pth')


def continued(work_dir: Path, name: str, target: Path, *args):
    """Resume a finished training in a new folder, from one of its checkpoints."""
    target.mkdir()
    (target / name).write_bytes((work_dir / name).read_bytes())
    return train(target, *args)


def test_resuming_restores_the_random_generators(whole, tmp_path):
    by_epoch, work_dir = whole
    name = 'epoch_2.pth' if by_epoch else 'iter_8.pth'
    runner = continued(work_dir, name, tmp_path / 'run', by_epoch)
    assert runner.message_hub.get_scalar('train/loss').data[0].shape == (16,), 'the log goes on'
    assert equal(weights(tmp_path / 'run' / LAST[by_epoch]), weights(work_dir / LAST[by_epoch]))


def test_workers_of_epochs_start_from_the_seed(tmp_path):
    train(tmp_path / 'whole', True, 2)
    continued(tmp_path / 'whole', 'epoch_2.pth', tmp_path / 'run', True, 2)
    assert equal(weights(tmp_path / 'run/epoch_4.pth'), weights(tmp_path / 'whole/epoch_4.pth'))


TWO_PROCESSES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from mmengine.config import Config
from tiny_training import tiny_config
from acmix_mm import runtime
from acmix_mm.runtime.distributed import use_cpu_processes
cfg = tiny_config(Path(sys.argv[2]))
cfg.launcher = 'pytorch'
cfg.env_cfg = dict(dist_cfg=dict(backend='gloo'))
cfg.randomness = dict(seed=0, diff_rank_seed=True)
use_cpu_processes(cfg)
runtime.resume(cfg, 'auto')
runtime.train(cfg)
"""


def test_all_processes_of_a_job_restore_their_random_generators(tmp_path):
    (tmp_path / 'job.py').write_text(TWO_PROCESSES)

    def job(work_dir: Path) -> dict:
        launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
        script = [tmp_path / 'job.py', Path(__file__).parents[1], work_dir]
        command = [*launch, '--nproc_per_node', '2', *script]
        subprocess.run(command, check=True, timeout=120, capture_output=True)
        return read_checkpoint(work_dir / 'epoch_4.pth')

    whole = job(tmp_path / 'whole')
    first, second = whole['random_states']
    assert not torch.equal(first['torch'], second['torch']), 'each process has its own'
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/epoch_2.pth').write_bytes((tmp_path / 'whole/epoch_2.pth').read_bytes())
    assert equal(job(tmp_path / 'run')['state_dict'], whole['state_dict'])


def test_the_seed_of_an_unseeded_training_is_kept(tmp_path):
    first = tiny_config(tmp_path / 'whole')
    first.randomness = dict(seed=None)
    build_runner(first).train()
    (tmp_path / 'run').mkdir()
    checkpoint = (tmp_path / 'whole/epoch_1.pth').read_bytes()
    (tmp_path / 'run/epoch_1.pth').write_bytes(checkpoint)
    again = tiny_config(tmp_path / 'run')
    again.randomness = dict(seed=None)
    resume(again, 'auto')
    build_runner(again).train()
    assert equal(weights(tmp_path / 'run/epoch_4.pth'), weights(tmp_path / 'whole/epoch_4.pth'))


def test_states_of_another_number_of_processes_are_not_used(tmp_path, caplog):
    train(tmp_path / 'whole')
    checkpoint = torch.load(tmp_path / 'whole/epoch_2.pth', weights_only=False)
    checkpoint['random_states'] *= 2
    (tmp_path / 'run').mkdir()
    torch.save(checkpoint, tmp_path / 'run/epoch_2.pth')
    cfg = tiny_config(tmp_path / 'run')
    cfg.log_level = 'WARNING'
    resume(cfg, 'auto')
    runner = build_runner(cfg)
    warnings = []
    runner.logger.warning = warnings.append
    runner.train()
    assert any(
        'the states of 2 processes of random generators, and this training has 1 processes' in w
        for w in warnings
    )


def test_weights_to_begin_from_do_not_bring_their_random_state(tmp_path):
    train(tmp_path / 'whole')
    cfg = tiny_config(tmp_path / 'run')
    cfg.load_from = str(tmp_path / 'whole/epoch_2.pth')
    runner = build_runner(cfg)
    hook = next(hook for hook in runner.hooks if isinstance(hook, ResumableCheckpointHook))
    runner.train()
    assert hook._states is None
    assert runner.iter == 16


def test_the_former_best_checkpoint_goes_after_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(TinyMetric, 'values', 0)
    work_dir, present = tmp_path / 'run', []

    @HOOKS.register_module(force=True)
    class LooksAtFiles(Hook):
        def before_save_checkpoint(self, runner, checkpoint):
            present.append(sorted(file.name for file in work_dir.glob('best_*')))

    cfg = tiny_config(work_dir, save_best='score', rule='greater', max_keep_ckpts=1)
    cfg.custom_hooks = [dict(type='LooksAtFiles')]
    build_runner(cfg).train()
    # In each epoch: the checkpoint, the best one, and the checkpoint with the new score.
    expected = [[], [], ['best_score_epoch_1.pth'], ['best_score_epoch_1.pth']]
    assert present[:4] == expected
    assert present[4] == ['best_score_epoch_1.pth'], 'while the next best one is written'
    assert [file.name for file in work_dir.glob('best_*')] == ['best_score_epoch_4.pth']
    assert [file.name for file in work_dir.glob('epoch_*')] == ['epoch_4.pth']
    assert (
        read_checkpoint(work_dir / 'epoch_4.pth')['message_hub']['runtime_info']['best_score'] == 4
    )


@pytest.mark.parametrize(
    'named', ['CheckpointHook', 'mmengine.CheckpointHook', 'mmengine.hooks.CheckpointHook',
              'mmengine.hooks.checkpoint_hook.CheckpointHook', CheckpointHook, None],
)  # fmt: skip
def test_every_config_gets_the_hook(tmp_path, named):
    cfg = tiny_config(tmp_path)
    cfg.default_hooks.checkpoint.type = named
    if named is None:
        cfg.pop('default_hooks')
    runner = build_runner(cfg)
    kinds = [type(hook) for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    assert kinds == [ResumableCheckpointHook]


def test_a_hook_of_another_class_is_left_alone(tmp_path):
    class Own(CheckpointHook):
        pass

    cfg = tiny_config(tmp_path)
    cfg.default_hooks.checkpoint.type = Own
    assert [type(h) for h in build_runner(cfg).hooks if isinstance(h, CheckpointHook)] == [Own]


def test_a_hook_with_the_same_last_name_is_left_alone(tmp_path, monkeypatch):
    class Own(CheckpointHook):
        pass

    module = ModuleType('own_project')
    module.CheckpointHook = Own
    monkeypatch.setitem(sys.modules, 'own_project', module)
    cfg = tiny_config(tmp_path)
    cfg.default_hooks.checkpoint.type = 'own_project.CheckpointHook'
    name_checkpoint_hook(cfg)
    assert cfg.default_hooks.checkpoint.type == 'own_project.CheckpointHook'


def edit(file: Path, **info) -> None:
    """Change what a checkpoint says of the others."""
    checkpoint = torch.load(file, weights_only=False)
    checkpoint['message_hub']['runtime_info'].update(info)
    checkpoint['message_hub']['resumed_keys'].update(dict.fromkeys(info, True))
    torch.save(checkpoint, file)


@pytest.mark.parametrize('scores', [['score'], ['score', 'other']])
@pytest.mark.parametrize(
    'victim', ['elsewhere/best_score_epoch_1.pth', 'run/../best_score.pth', 'run/notes.txt', 'data']
)
def test_resuming_removes_nothing_that_is_not_its_own(tmp_path, monkeypatch, victim, scores):
    metrics = TinyMetric.compute_metrics
    monkeypatch.setattr(
        TinyMetric, 'compute_metrics', lambda *a: dict.fromkeys(scores, metrics(*a)['score'])
    )
    options = dict(save_best=scores if len(scores) > 1 else scores[0], rule='greater')
    train(tmp_path / 'whole')
    work_dir = tmp_path / 'run'
    work_dir.mkdir()
    (work_dir / 'epoch_2.pth').write_bytes((tmp_path / 'whole/epoch_2.pth').read_bytes())
    path = tmp_path / victim
    if victim == 'data':
        path.mkdir()
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text('precious')
    info = dict(best_ckpt=str(path), best_ckpt_score=str(path), best_ckpt_other=str(path))
    edit(work_dir / 'epoch_2.pth', **info)
    train(work_dir, **options)
    assert path.exists()
    assert [*work_dir.glob('best_score_epoch_*')] == [work_dir / 'best_score_epoch_4.pth']


@pytest.mark.parametrize('ids', [['../precious', 1, 2], 'xyz', [None, {}], 3])
def test_steps_that_are_none_are_forgotten(tmp_path, ids):
    options = dict(max_keep_ckpts=1, filename_tmpl='{}.pth')
    work_dir = tmp_path / 'run'
    (tmp_path / 'precious.pth').touch()
    train(work_dir, **options)
    edit(work_dir / '4.pth', keep_ckpt_ids=ids)
    train(work_dir, **options)
    assert (tmp_path / 'precious.pth').exists()
    assert (work_dir / '4.pth').exists()


def test_the_checkpoint_hook_writes_into_its_folder(tmp_path):
    with pytest.raises(ValueError, match=r"filename_tmpl='\.\./\{\}\.pth' .* contains a folder"):
        ResumableCheckpointHook(filename_tmpl='../{}.pth')
    ResumableCheckpointHook(filename_tmpl='a{}.pth')


def test_the_backend_removes_nothing_outside_its_folder(tmp_path):
    backend = _RemovesLater(LocalBackend(), str(tmp_path / 'run'))
    with pytest.raises(ValueError, match='is not removed: it is not in'):
        backend.remove(str(tmp_path / 'run/../other'))


def test_a_best_checkpoint_in_the_place_of_the_former_one_stays(tmp_path):
    work_dir = tmp_path / 'run'
    cfg = tiny_config(work_dir, False, save_best='score', rule='greater')
    cfg.default_hooks.checkpoint.by_epoch = True  # so that each name contains epoch 0
    build_runner(cfg).train()
    best = work_dir / 'best_score_epoch_0.pth'
    assert read_checkpoint(best)['meta']['iter'] == 16


def test_a_checkpoint_in_the_place_of_the_former_one_stays(tmp_path):
    for _ in range(2):
        train(tmp_path / 'run', max_keep_ckpts=1, filename_tmpl='newest.pth')
        assert read_checkpoint(tmp_path / 'run/newest.pth')['meta']['epoch'] == 4


def test_what_a_killed_training_could_not_remove_goes_when_it_resumes(tmp_path, monkeypatch):
    work_dir = tmp_path / 'run'
    with monkeypatch.context() as patch:

        def killed(backend):
            if len([*work_dir.glob('epoch_*.pth')]) == 2:
                raise KeyboardInterrupt

        patch.setattr(_RemovesLater, 'remove_now', killed)
        with pytest.raises(KeyboardInterrupt):
            train(work_dir, max_keep_ckpts=1)
    (work_dir / 'epoch_x.pth').touch()
    names = sorted(file.name for file in work_dir.glob('epoch_*'))
    assert names == ['epoch_1.pth', 'epoch_2.pth', 'epoch_x.pth']
    train(work_dir, max_keep_ckpts=1)
    names = sorted(file.name for file in work_dir.glob('epoch_*'))
    assert names == ['epoch_4.pth', 'epoch_x.pth']


FULL_DISK = """
from mmengine.dist import get_rank
from mmengine.runner import Runner

def full(self, *args, **kwargs):
    if get_rank() == 0:
        raise OSError(28, 'No space left on device')

Runner.save_checkpoint = full
try:
    runtime.train(cfg)
except SystemExit as error:
    print(f'{get_rank()}: {error}\\n', end='', flush=True)
"""


def test_all_processes_of_a_job_learn_that_the_disk_is_full(tmp_path):
    script = TWO_PROCESSES.replace('runtime.train(cfg)', FULL_DISK)
    (tmp_path / 'job.py').write_text(script)
    launch = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc_per_node',
        '2',
    ]
    command = [*launch, tmp_path / 'job.py', Path(__file__).parents[1], tmp_path]
    job = subprocess.run(command, timeout=60, capture_output=True, text=True)
    message = f'The checkpoint {tmp_path}/epoch_1.pth cannot be written: No space left on device.'
    for rank in (0, 1):
        assert f'{rank}: {message}' in job.stdout
    assert job.returncode == 0, 'no process hangs or crashes'


def test_the_newest_checkpoint_is_chosen_when_no_other_training_runs(tmp_path, monkeypatch):
    """Choose inside the lock: a training that ended a moment ago has saved another one."""
    train(tmp_path / 'whole')
    work_dir = tmp_path / 'run'
    work_dir.mkdir()
    (work_dir / 'epoch_1.pth').write_bytes((tmp_path / 'whole/epoch_1.pth').read_bytes())

    @contextmanager
    def locked(cfg):
        (work_dir / 'epoch_3.pth').write_bytes((tmp_path / 'whole/epoch_3.pth').read_bytes())
        (work_dir / 'epoch_1.pth').unlink()
        yield

    cfg = tiny_config(work_dir)
    monkeypatch.setattr('acmix_mm.runtime.config.locked', locked)
    monkeypatch.setattr('tools.train.load_config', lambda *args: cfg)
    monkeypatch.setattr('tools.train.require_inputs', lambda *args, **kwargs: None)
    train_tool.main(['config.py', '--resume'])
    assert cfg.load_from == str(work_dir / 'epoch_3.pth')
    assert sorted(file.name for file in work_dir.glob('*.pth')) == ['epoch_3.pth', 'epoch_4.pth']


def test_weights_to_begin_from_are_checked_if_there_is_nothing_to_resume(tmp_path, monkeypatch):
    cfg = tiny_config(tmp_path / 'run')
    cfg.load_from = str(tmp_path / 'gone.pth')
    with pytest.raises(SystemExit, match=r'gone\.pth'):
        runtime.train(cfg, resume_newest=True)
    train(tmp_path / 'whole')
    (tmp_path / 'run/epoch_4.pth').write_bytes((tmp_path / 'whole/epoch_4.pth').read_bytes())
    runtime.train(cfg, resume_newest=True)  # does not need them
    assert cfg.load_from == str(tmp_path / 'run/epoch_4.pth')
