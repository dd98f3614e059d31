# SPDX-License-Identifier: Apache-2.0
"""Checkpoints from which a training goes on as if it had not been interrupted."""

import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..atomic_write import (
    TEMPORARY,
    WriteError,
    put_in_place,
    remove_leftovers,
    write_atomically,
)

RANDOM_STATES = 'random_states'  # entry of a checkpoint: a state for each process


@HOOKS.register_module()
class ResumableCheckpointHook(CheckpointHook):
    """Save checkpoints as mmengine's hook does, and lose none of them.

    It differs from ``CheckpointHook`` in five points:

    * A checkpoint is written beside its place, brought to the disk, and renamed. So a file with the
      name of a checkpoint is complete. (Checkpoints that are not saved to a local folder are
      written as by mmengine.)
    * A former checkpoint is removed only after the next one is complete, so that one is always
      there, also with ``max_keep_ckpts=1``. If the training is killed in between, it is removed
      when the training resumes.
    * ``last_checkpoint`` is written in the same way, and names a checkpoint that is complete.
    * A checkpoint contains the states of the random generators of all processes: those of Python,
      numpy and torch, on the CPU and on the accelerator. A training that resumes restores them.
      Validation leaves them as they are, so that it does not matter whether it is repeated.
    * What a checkpoint to resume from says of others is checked: nothing outside the folder of the
      checkpoints is removed.

    The states of the workers of a data loader are not among them: those start again from the seed.

    Args:
        *args: As for ``mmengine.hooks.CheckpointHook``.
        **kwargs: As for ``mmengine.hooks.CheckpointHook``. ``filename_tmpl`` is the name of a file,
            without a folder.

    Raises:
        ValueError: ``filename_tmpl`` contains a folder.

    Examples:
        >>> hook = ResumableCheckpointHook(interval=1, max_keep_ckpts=1)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.filename_tmpl and os.path.basename(self.filename_tmpl) != self.filename_tmpl:
            raise ValueError(
                f'filename_tmpl={self.filename_tmpl!r} of the checkpoint hook contains a folder: '
                'give the name of a file, and the folder as out_dir.'
            )
        self._states: list[dict[str, Any]] | None = None  # to save, or to resume from
        self._before_validation: dict[str, Any] | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the states of the random generators until training begins."""
        self._states = checkpoint.pop(RANDOM_STATES, None)

    def before_train(self, runner: Runner) -> None:
        """Prepare to save, and to restore the random generators if the training resumes."""
        outdated = self._check_resumed(runner)
        super().before_train(runner)
        self.file_backend: Any = _RemovesLater(self.file_backend, self.out_dir)
        if is_main_process():
            for folder in {self.out_dir, runner.work_dir}:
                remove_leftovers(folder)
            self._remove_later(outdated)
            resumed = runner.epoch if self.by_epoch else runner.iter
            self.file_backend.keep(self.filename_tmpl.format(resumed))
            self.file_backend.remove_now()
        loop = runner.train_loop
        if getattr(loop.dataloader, 'generator', None) is None:
            # Otherwise each iterator of the loader takes its seed from torch's own generator.
            loop.dataloader.generator = torch.Generator().manual_seed(runner.seed)
        states, self._states = self._states, None
        if runner.iter == 0:  # nothing to resume: weights were loaded to begin from
            return
        if states is None or len(states) != get_world_size():
            has = 'no states' if states is None else f'the states of {len(states)} processes'
            runner.logger.warning(
                f'The checkpoint has {has} of random generators, and this training has '
                f'{get_world_size()} processes: its random numbers will differ from those of a '
                'training without an interruption.'
            )
            return
        restore = partial(restore_random_state, states[get_rank()])
        if hasattr(loop, 'dataloader_iterator'):  # the loop by iterations, which skips batches
            skipped = 0 if getattr(loop, 'fast_forward_on_resume', False) else runner.iter
            loop.dataloader_iterator = _After(loop.dataloader_iterator, skipped, restore)
        else:
            restore()

    def _check_resumed(self, runner: Runner) -> list[int]:
        """Forget the checkpoints of the message hub that are not of this folder.

        The message hub comes from the file that the training resumes from, and says which files
        the hook removes.

        Returns:
            The steps of those beyond ``max_keep_ckpts``, which are to be removed now.
        """
        known = runner.message_hub.runtime_info
        folder = checkpoint_folder(self.out_dir, runner.work_dir)
        for key in [key for key in known if key.startswith('best_ckpt')]:
            path = known[key]
            if not (
                isinstance(path, str)
                and is_inside(path, folder)
                and os.path.basename(path).startswith('best_')
            ):
                del known[key]
        steps = known.pop('keep_ckpt_ids', None)
        if not isinstance(steps, list) or not all(isinstance(step, int) for step in steps):
            return []
        if self.max_keep_ckpts <= 0:
            return []
        known['keep_ckpt_ids'] = steps[-self.max_keep_ckpts :]
        return steps[: -self.max_keep_ckpts]

    def before_val(self, runner: Runner) -> None:
        """Keep the state of the random generators."""
        self._before_validation = random_state()

    def after_val(self, runner: Runner) -> None:
        """Restore the state of the random generators."""
        if self._before_validation is not None:
            restore_random_state(self._before_validation)
            self._before_validation = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the states of the random generators to a checkpoint to resume from."""
        if self._states is not None:
            checkpoint[RANDOM_STATES] = self._states

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        self._states = all_gather_object(self._before_validation or random_state())
        try:
            self._remove_later(self._outdated(runner, step))
            name = self.filename_tmpl.format(step)
            self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
            runner.message_hub.update_info('last_ckpt', self.last_ckpt)
            _SavesAtomically(runner, self.file_backend).save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
        finally:
            self._states = None
        if is_main_process():
            write_atomically(Path(runner.work_dir, 'last_checkpoint'), self.last_ckpt)
            self.file_backend.remove_now()

    def _outdated(self, runner: Runner, step: int) -> list[int]:
        """Return the steps of the checkpoints to remove after that of a step is saved."""
        if self.max_keep_ckpts <= 0 or step in self.keep_ckpt_ids:
            return []
        full = len(self.keep_ckpt_ids) == self.max_keep_ckpts
        steps = [self.keep_ckpt_ids.popleft()] if full else []
        self.keep_ckpt_ids.append(step)
        # With the outdated ones, which stay if the training is killed before it removes them.
        runner.message_hub.update_info('keep_ckpt_ids', [*steps, *self.keep_ckpt_ids])
        return steps

    def _remove_later(self, steps: list[int]) -> None:
        for step in steps:
            name = self.filename_tmpl.format(step)
            self.file_backend.remove(self.file_backend.join_path(self.out_dir, name))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        super()._save_best_checkpoint(_SavesAtomically(runner, self.file_backend), metrics)
        if is_main_process():
            self.file_backend.remove_now()


def checkpoint_folder(out_dir: str | os.PathLike | None, work_dir: str) -> str:
    """Return the folder of the checkpoints of a training.

    Args:
        out_dir: Option of the checkpoint hook. Default of the hook: None.
        work_dir: Work dir of the training.
    """
    if out_dir is None or str(out_dir) == work_dir:
        return work_dir
    return os.path.join(out_dir, os.path.basename(work_dir.rstrip('/')))


def is_inside(path: str, folder: str) -> bool:
    """Return whether a path is directly inside a folder, after links are followed to the folder."""
    return os.path.realpath(os.path.dirname(path)) == os.path.realpath(folder)


def random_state() -> dict[str, Any]:
    """Return the state of the random generators of this process, as plain values and tensors."""
    # The generator that the transforms of mmcv, mmdet and mmseg use.
    numpy_state: dict[str, Any] = np.random.get_state(legacy=False)  # noqa: NPY002
    numpy_state['state']['key'] = numpy_state['state']['key'].tolist()
    state = dict(python=random.getstate(), numpy=numpy_state, torch=torch.get_rng_state())
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the random generators of this process.

    Args:
        state: What :func:`random_state` returned.
    """
    random.setstate(state['python'])
    np.random.set_state(state['numpy'])  # noqa: NPY002
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


class _After:
    """Iterator of a data loader that calls a function once, after some batches are skipped.

    mmengine's loop by iterations skips the batches of the iterations that are done already. To
    load them uses random numbers, so the generators are restored after that.
    """

    def __init__(self, iterator: Any, skipped: int, function: Callable[[], None]) -> None:
        self._iterator = iterator
        self._left = skipped
        self._function: Callable[[], None] | None = function

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)

    def __iter__(self) -> '_After':
        return self

    def skip_iter(self, num_iters: int) -> None:
        """Skip batches as newer versions of mmengine do, without loading them."""
        self._iterator.skip_iter(num_iters)
        self._left -= num_iters

    def __next__(self) -> Any:
        if self._left <= 0 and self._function is not None:
            self._function()
            self._function = None
        self._left -= 1
        return next(self._iterator)


class _SavesAtomically:
    """Runner that writes checkpoints in local folders beside their place, and then renames them."""

    def __init__(self, runner: Runner, backend: '_RemovesLater') -> None:
        self._runner = runner
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        self._backend.keep(filename)
        if '://' in out_dir:
            self._runner.save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        temporary = TEMPORARY.replace('*', filename)
        save = partial(self._runner.save_checkpoint, out_dir, temporary, *args, **kwargs)
        put = partial(put_in_place, Path(out_dir, temporary), Path(out_dir, filename))
        try:
            _in_all_processes(save)
            _in_all_processes(put if is_main_process() else lambda: None)
        except OSError as error:
            remove_leftovers(out_dir)
            raise WriteError(
                f'The checkpoint {Path(out_dir, filename)} cannot be written: '
                f'{error.strerror or error}. The one before it is kept.'
            ) from error


def _in_all_processes(function: Callable[[], None]) -> None:
    """Call a function and wait for the other processes. If one fails, fail in all of them."""
    failure = None
    try:
        function()
    except OSError as error:
        failure = error.strerror or str(error)
    for reason in all_gather_object(failure):
        if reason is not None:
            raise OSError(reason)


class _RemovesLater:
    """File backend that keeps what is to be removed until it is told to.

    Args:
        backend: The file backend.
        folder: Nothing outside this folder is removed.
    """

    def __init__(self, backend: Any, folder: str) -> None:
        self._backend = backend
        self._folder = folder
        self._outdated: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        if not is_inside(path, self._folder):
            raise ValueError(f'{path} is not removed: it is not in {self._folder}.')
        self._outdated.append(path)

    rmtree = remove

    def keep(self, name: str) -> None:
        """Do not remove a file, because another one is written in its place."""
        self._outdated = [path for path in self._outdated if os.path.basename(path) != name]

    def remove_now(self) -> None:
        for path in self._outdated:
            _remove(self._backend, path)
        self._outdated.clear()


def _remove(backend: Any, path: str) -> None:
    if backend.isdir(path):  # of a strategy that saves shards
        backend.rmtree(path)
    elif backend.isfile(path):
        backend.remove(path)
