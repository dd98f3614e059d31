# SPDX-License-Identifier: Apache-2.0
"""A training and the test of its last checkpoint, as commands that can be continued."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from mmengine.config import Config

from .config import config_parser
from .work_dir import newest_checkpoint

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
SECONDS_TO_END = 30  # that a training has after SIGTERM


def read_scalars(work_dir: Path) -> list[dict[str, float]]:
    """Read what a training has logged, in the order of time. One that was resumed has several logs.

    A line that was cut off, as by a full disk or a kill, is left out.

    Args:
        work_dir: Work dir of the training.

    Returns:
        list: Entries with the key ``step``, such as an iteration's learning rate and losses.
    """
    rows = []
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                print(f'{file}, line {number}, is left out ({error}).', file=sys.stderr)
    return rows


class RunError(Exception):
    """A config cannot be trained. The message says why."""


class TrainingRun:
    """The training of a config, and the test of its last checkpoint.

    Args:
        config: Path of the config.
        work_dir: Folder for checkpoints and logs. What it contains decides what is left to do.
        options: ``KEY=VALUE`` pairs of ``--cfg-options`` for training and test.
        gpus: Number of GPUs. Default: 1.
        environment: Variables of the environment of the commands. Default: none.
    """

    def __init__(
        self,
        config: str,
        work_dir: Path,
        options: Sequence[str] = (),
        gpus: int = 1,
        environment: Mapping[str, str] = {},
    ) -> None:
        self.config, self.work_dir, self.gpus = config, work_dir, gpus
        self.options, self.environment = list(options), dict(environment)
        self.log = work_dir / 'train_and_test.log'
        self._process: subprocess.Popen | None = None
        self._ended = False
        self._lock = Lock()

    def state(self) -> str:
        """Return ``'done'`` after the test, else the newest checkpoint's name or an empty string.

        Raises:
            RunError: The config cannot be read.
        """
        if self.metrics():
            return 'done'
        if not self.work_dir.exists():
            return ''
        cfg = self.read_config()
        cfg.work_dir = str(self.work_dir)
        newest = newest_checkpoint(cfg)
        return newest.stem if newest else ''

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the test as mmengine names them; empty before the test.

        A file that is damaged, as by a full disk, is no test.
        """
        # mmengine writes the metrics of a test to <time>/<time>.json.
        for log in sorted(self.work_dir.glob('test/*/[0-9]*.json'), reverse=True):
            try:
                return {
                    name: value
                    for name, value in json.loads(log.read_text()).items()
                    if isinstance(value, int | float)
                }
            except (OSError, ValueError, AttributeError) as error:
                print(f'{log} is not a file of metrics ({error}).', file=sys.stderr)
        return {}

    def commands(self) -> list[list[str]]:
        """Return the commands that are left to be run.

        Raises:
            RunError: The config cannot be read.
        """
        state = self.state()
        if state == 'done':
            return []
        try:
            cfg = self.read_config()
            options = [*self.options, *self.options_for(cfg)]
            loop = cfg.train_cfg
            last = f'epoch_{loop.max_epochs}' if 'max_epochs' in loop else f'iter_{loop.max_iters}'
        except (AttributeError, KeyError, TypeError) as error:
            raise RunError(f'{self.config} is no config of a training: {error}') from error
        train = self._tool('train', [self.config], self.work_dir, options)
        if state:
            train.insert(train.index('--work-dir'), '--resume')
        checkpoint = str(self.work_dir / f'{last}.pth')
        test = self._tool('test', [self.config, checkpoint], self.work_dir / 'test', options)
        return [test] if state == last else [train, test]

    def options_for(self, cfg: Config) -> list[str]:
        """Return more ``KEY=VALUE`` pairs, which depend on the config; none by default."""
        return []

    def run(self, commands: list[list[str]]) -> bool:
        """Run commands until one fails. Return True if none failed.

        What ends this process while one runs ends that one too, with all processes it started.
        """
        self.work_dir.mkdir(parents=True, exist_ok=True)
        # Put the Python that runs this tool first, because the scripts call `python`.
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get('PATH', '')])
        environment = os.environ | dict(self.environment, PATH=path)
        with self.log.open('a') as log:
            for command in commands:
                print(f'$ {shlex.join(command)}', file=log, flush=True)
                with self._lock:
                    if self._ended:
                        return False
                    self._process = subprocess.Popen(
                        command, stdout=log, stderr=log, env=environment, start_new_session=True
                    )
                try:
                    code = self._process.wait()
                except BaseException:
                    end_all([self])
                    raise
                if code:
                    return False
        return True

    def signal(self, number: int) -> None:
        """Send a signal to the command that runs and all processes it started; start no other."""
        with self._lock:
            self._ended = True
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def wait(self, seconds: float) -> None:
        """Wait until the command that runs has ended, but not longer than some seconds."""
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)

    def read_config(self) -> Config:
        """Read the config, with the options.

        Raises:
            RunError: It cannot be read.
        """
        try:
            cfg = Config.fromfile(self.config, import_custom_modules=False)
            if self.options:
                arguments = [self.config, '--cfg-options', *self.options]
                cfg.merge_from_dict(config_parser('').parse_args(arguments).cfg_options)
            return cfg
        except Exception as error:  # a config is a program, which may raise any exception
            raise RunError(
                f'{self.config} cannot be read ({type(error).__name__}: {error})'
            ) from error

    def _tool(
        self, name: str, files: list[str], work_dir: Path, options: Sequence[str]
    ) -> list[str]:
        tools = os.path.relpath(TOOLS)
        arguments = ['--work-dir', str(work_dir)]
        if options:
            arguments += ['--cfg-options', *options]
        if self.gpus > 1:
            return ['bash', f'{tools}/dist_{name}.sh', *files, str(self.gpus), *arguments]
        return ['python', f'{tools}/{name}.py', *files, *arguments]


def end_all(runs: Sequence[TrainingRun]) -> None:
    """End the commands of runs, and wait for them; kill those that do not end in time."""
    try:
        for run in runs:
            run.signal(signal.SIGTERM)
        end = time.monotonic() + SECONDS_TO_END
        for run in runs:
            run.wait(max(0.0, end - time.monotonic()))
    finally:
        for run in runs:
            run.signal(signal.SIGKILL)


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Let signals that end a process raise KeyboardInterrupt, as Ctrl-C does.

    A signal that is ignored, as ``nohup`` does with SIGHUP, remains so.
    """

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    signals = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in signals}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
