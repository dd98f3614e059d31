# SPDX-License-Identifier: Apache-2.0
"""Kill trainings at every point, and compare what they end with after they resume.

    python -m benchmarks.stress kills [--random 30] [--seed 0] [--tasks detection segmentation]

A training of a demo model with flips and RoI sampling is killed with SIGKILL at random times, at
each point of the writing of a checkpoint, or its disk is full. Then the same command runs again. It
passes if it ends with the weights, to the bit, of a training that nothing interrupted. The command
prints how many trials each part has passed, and ends with exit code 1 if one has not.

It needs Linux: the trainings are forked from a process that has imported everything already.
"""

import argparse
import os
import random
import resource
import runpy
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.runner import runner as mmengine_runner

from acmix_mm import atomic_write
from acmix_mm.checkpoints.files import read_checkpoint
from acmix_mm.hooks import checkpoint as hook
from acmix_mm.runtime.markdown import table
from acmix_mm.runtime.work_dir import training_state

ROOT = Path(__file__).resolve().parents[1]
TASKS = dict(  # the library, the config of the demo, and the last checkpoint of its training here
    detection=('mmdet', 'mask-rcnn_resnet26-acmix_fpn_shapes.py', 'epoch_3.pth'),
    segmentation=('mmseg', 'sem-fpn_resnet26-acmix_shapes.py', 'iter_6.pth'),
)
Train = Callable[[Path], None]
Fault = Callable[[], None]


@dataclass(frozen=True)
class Trial:
    """A training that is interrupted.

    Args:
        name: What interrupts it.
        fault: Prepares, in the process of the training, what will interrupt it.
        seconds: Time after which the process is killed. None: it is not.
    """

    name: str
    fault: Fault | None = None
    seconds: float | None = None


def die() -> None:
    """Kill this process, as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def when_writing(write: int, act: Callable[[Path, bytes], None]) -> None:
    """Let this process do something instead of writing a file.

    Args:
        write: Which of the files, counted from 1. A checkpoint and the name of the last one take
            turns.
        act: Gets the temporary path and the content.
    """
    count = 0

    def replacement(original: Callable) -> Callable:
        def write_file(path: Path, data: bytes) -> None:
            nonlocal count
            count += 1
            if count == write:
                act(path, data)
            original(path, data)

        return write_file

    put = LocalBackend.put
    write_file = replacement(lambda path, data: put(LocalBackend(), data, path))
    setattr(LocalBackend, 'put', lambda _, data, path: write_file(Path(path), data))  # noqa: B010
    setattr(atomic_write, '_write', replacement(atomic_write._write))  # noqa: B010


def kill_while_writing(write: int, point: str) -> None:
    """Let this process kill itself while it writes a file.

    Args:
        write: Which of the files, as for :func:`when_writing`.
        point: ``'before'``, ``'half'`` of the content, ``'written'`` but not renamed, or
            ``'renamed'``.
    """
    replace = os.replace

    def act(path: Path, data: bytes) -> None:
        if point == 'half':
            path.write_bytes(data[: len(data) // 2])
        if point in ('before', 'half'):
            die()
        setattr(os, 'replace', replace_and_die)  # noqa: B010

    def replace_and_die(source: Path, target: Path) -> None:
        if point == 'renamed':
            replace(source, target)
        die()

    when_writing(write, act)


def kill_while_removing(point: str) -> None:
    """Let this process kill itself before or after it removes the former checkpoint."""
    original = hook._remove

    def remove(backend: object, path: str) -> None:
        if point == 'before':
            die()
        original(backend, path)
        die()

    setattr(hook, '_remove', remove)  # noqa: B010


def fill_disk(write: int) -> None:
    """Let the disk be full after half of a file: no file of this process can grow beyond that."""

    def act(_: Path, data: bytes) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(data) // 2, resource.RLIM_INFINITY))

    when_writing(write, act)


def points_of_writing(saves: int) -> Iterator[Trial]:
    """Yield a trial for each point of the first saves of a training."""
    for write in range(1, 2 * saves + 1):
        file = f'{"last_checkpoint" if write % 2 == 0 else "checkpoint"} {(write + 1) // 2}'
        for point in ('before', 'half', 'written', 'renamed'):
            yield Trial(f'{file}, {point}', partial(kill_while_writing, write, point))
    for point in ('before', 'after'):
        yield Trial(f'former checkpoint, {point} removal', partial(kill_while_removing, point))


def full_disks(saves: int) -> Iterator[Trial]:
    """Yield a trial for each of the first checkpoints of a training."""
    for save in range(1, saves + 1):
        yield Trial(f'disk full in checkpoint {save}', partial(fill_disk, 2 * save - 1))


def run(train: Train, work_dir: Path, trial: Trial | None = None) -> int:
    """Run a training in a forked process, and return its exit code, negative for a signal."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            sys.stdout = sys.stderr = work_dir.with_suffix('.log').open('a', buffering=1)
            os.dup2(sys.stdout.fileno(), 1)
            os.dup2(sys.stdout.fileno(), 2)
            torch.set_num_threads(1)  # those of the parent are not there
            if trial and trial.fault:
                trial.fault()
            train(work_dir)
            code = 0
        except SystemExit as error:
            print(error, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    if trial and trial.seconds is not None:
        time.sleep(trial.seconds)
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def survives(train: Train, work_dir: Path, trial: Trial, last: str, expected: dict) -> str:
    """Interrupt a training, run it again, and compare. Return an empty string, or what is wrong.

    Args:
        train: Trains in a work dir, and resumes what is there.
        work_dir: A new folder.
        trial: What interrupts it.
        last: Name of the last checkpoint.
        expected: State dict of that of a training that was not interrupted.
    """
    code = run(train, work_dir, trial)
    if code == 0 and trial.fault:
        return 'it was not interrupted'
    if (work_dir / 'last_checkpoint').exists() and not any(
        map(is_complete, work_dir.glob('*.pth'))
    ):
        return 'no checkpoint is left'
    code = run(train, work_dir)
    if code:
        return f'it did not resume (exit code {code}, see {work_dir.with_suffix(".log")})'
    if list(work_dir.glob(atomic_write.TEMPORARY)):
        return 'a temporary file is left'
    state = read_checkpoint(work_dir / last)['state_dict']
    equal = state.keys() == expected.keys() and all(
        torch.equal(state[name], expected[name]) for name in state
    )
    return '' if equal else 'its weights differ'


def is_complete(path: Path) -> bool:
    """Return whether a training can resume from a file."""
    try:
        return bool(training_state(path))
    except ValueError:
        return False


def try_all(
    train: Train, folder: Path, last: str, random_kills: int, seed: int, saves: int = 2
) -> dict[str, list[str]]:
    """Try all interruptions of a training, and return the failures of each part.

    Args:
        train: Trains in a work dir, and resumes what is there.
        folder: A new folder for all work dirs.
        last: Name of the last checkpoint.
        random_kills: Number of kills at random times.
        seed: Seed of these times.
        saves: At how many checkpoints to kill at each point.
    """
    folder.mkdir(parents=True)
    start = time.monotonic()
    if run(train, folder / 'whole'):
        raise RuntimeError(f'the training fails, see {folder / "whole.log"}')
    seconds = time.monotonic() - start
    expected = read_checkpoint(folder / 'whole' / last)['state_dict']
    times = [random.Random(seed + i).uniform(0, seconds) for i in range(random_kills)]
    parts = {
        'SIGKILL at random times': [Trial(f'{t:.2f} s', seconds=t) for t in times],
        'SIGKILL at each point of saving': list(points_of_writing(saves)),
        'disk full': list(full_disks(saves)),
    }
    results: dict[str, list[str]] = {}
    for part, trials in parts.items():
        results[part] = []
        for i, trial in enumerate(trials):
            work_dir = folder / f'{part.replace(" ", "-")}-{i}'
            wrong = survives(train, work_dir, trial, last, expected)
            results[part].append(f'{trial.name}: {wrong}' if wrong else '')
    return results


def leave_out_descriptions() -> None:
    """Leave out what takes most of the time of a short training, and has no part in resuming.

    It is the description of the machine, and the formatting of the config.
    """
    setattr(mmengine_runner, 'collect_env', dict)  # noqa: B010
    setattr(Config, 'pretty_text', property(lambda _: ''))  # noqa: B010


def train_demo(main: Callable, task: str, data: Path, work_dir: Path) -> None:
    """Train a demo model for a few steps with the ``main`` of tools/train.py."""
    loop, interval = (
        (['max_epochs=3', 'val_interval=2'], 1)
        if task == 'detection'
        else (['max_iters=6', 'val_interval=4'], 2)
    )
    loaders = ['num_workers=0', 'persistent_workers=False', 'batch_size=4']
    options = [
        f'data_root={data}',
        *(f'{split}_dataloader.{option}' for split in ('train', 'val') for option in loaders),
        *(f'train_cfg.{option}' for option in loop),
        f'default_hooks.checkpoint.interval={interval}',
        'default_hooks.checkpoint.max_keep_ckpts=1',
    ]
    argv = [str(ROOT / 'configs/demo' / TASKS[task][1]), '--work-dir', str(work_dir), '--resume']
    main([*argv, '--cfg-options', *options])


def kills(args: argparse.Namespace) -> bool:
    """Run the campaign, print its table, and return whether all trials have passed."""
    folder = Path(tempfile.mkdtemp(prefix='acmix-mm-stress-'))
    runpy.run_path(str(ROOT / 'tools/dataset/make_shapes.py'))['main'](
        ['--out', str(folder / 'shapes'), '--train', '8', '--val', '4']
    )
    main = runpy.run_path(str(ROOT / 'tools/train.py'))['main']
    leave_out_descriptions()
    rows, failures = [], []
    for task in args.tasks:
        library, _, last = TASKS[task]
        for part in ('models', 'datasets', 'engine', 'evaluation', 'visualization'):
            import_module(f'{library}.{part}')
        train = partial(train_demo, main, task, folder / 'shapes')
        results = try_all(train, folder / task, last, args.random, args.seed)
        for part, wrong in results.items():
            failed = [f'{task}, {text}' for text in wrong if text]
            rows.append([task, part, str(len(wrong)), str(len(wrong) - len(failed))])
            failures += failed
    print(table(('training', 'interruption', 'tried', 'passed'), rows), *failures, sep='\n')
    return not failures


def main(argv: list[str] | None = None) -> None:
    """Run a campaign."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    campaigns = parser.add_subparsers(required=True)
    command = campaigns.add_parser('kills', help='kill trainings, and resume them')
    command.add_argument('--random', type=int, default=30, help='random kills of each training')
    command.add_argument('--seed', type=int, default=0, help='seed of the random times')
    command.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS))
    command.set_defaults(run=kills)
    args = parser.parse_args(argv)
    if not args.run(args):
        sys.exit(1)


if __name__ == '__main__':
    main()
