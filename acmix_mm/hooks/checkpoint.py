# SPDX-License-Identifier: Apache-2.0
"""Checkpoints from which a training goes on as if it had not been interrupted."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, barrier, get_rank, get_world_size, is_main_process
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

    It differs from ``CheckpointHook`` in four points:

    * A checkpoint is written beside its place, brought to the disk, and renamed. So a file with the
      name of a checkpoint is complete. (Checkpoints that are not saved to a local folder are
      written as by mmengine.)
    * A former checkpoint is removed only after the next one is complete, so that one is always
      there, also with ``max_keep_ckpts=1``.
    * ``last_checkpoint`` is written in the same way, and names a checkpoint that is complete.
    * A checkpoint contains the states of the random generators of all processes: those of Python,
      numpy and torch, on the CPU and on the accelerator. A training that resumes restores them.
      Validation leaves them as they are, so that it does not matter whether it is repeated.

    The states of the workers of a data loader are not among them: those start again from the seed.

    Args:
        *args: As for ``mmengine.hooks.CheckpointHook``.
        **kwargs: As for ``mmengine.hooks.CheckpointHook``.

    Examples:
        >>> hook = ResumableCheckpointHook(interval=1, max_keep_ckpts=1)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._states: list[dict[str, Any]] | None = None  # to save, or to resume from
        self._before_validation: dict[str, Any] | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the states of the random generators until training begins."""
        self._states = checkpoint.pop(RANDOM_STATES, None)

    def before_train(self, runner: Runner) -> None:
        """Prepare to save, and to restore the random generators if the training resumes."""
        super().before_train(runner)
        self.file_backend: Any = _RemovesLater(self.file_backend)
        if is_main_process():
            for folder in {self.out_dir, runner.work_dir}:
                remove_leftovers(folder)
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
            outdated = self._outdated(runner, step)
            name = self.filename_tmpl.format(step)
            self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
            runner.message_hub.update_info('last_ckpt', self.last_ckpt)
            _SavesAtomically(runner).save_checkpoint(
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
            for path in outdated:
                self.file_backend.remove(path)
            self.file_backend.remove_now()

    def _outdated(self, runner: Runner, step: int) -> list[str]:
        """Return the checkpoints to remove after that of a step is saved."""
        if self.max_keep_ckpts <= 0 or step in self.keep_ckpt_ids:
            return []
        full = len(self.keep_ckpt_ids) == self.max_keep_ckpts
        steps = [self.keep_ckpt_ids.popleft()] if full else []
        self.keep_ckpt_ids.append(step)
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        return [
            self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old))
            for old in steps
        ]

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        super()._save_best_checkpoint(_SavesAtomically(runner), metrics)
        self.file_backend.remove_now()


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

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        if '://' in out_dir:
            self._runner.save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        temporary = TEMPORARY.replace('*', filename)
        try:
            self._runner.save_checkpoint(out_dir, temporary, *args, **kwargs)
            barrier()  # all processes have written their shards
            if is_main_process():
                put_in_place(Path(out_dir, temporary), Path(out_dir, filename))
        except OSError as error:
            remove_leftovers(out_dir)
            raise WriteError(
                f'The checkpoint {Path(out_dir, filename)} cannot be written: '
                f'{error.strerror or error}. The one before it is kept.'
            ) from error


class _RemovesLater:
    """File backend that keeps what is to be removed until it is told to."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._outdated: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self._outdated.append(path)

    rmtree = remove

    def remove_now(self) -> None:
        for path in self._outdated:
            _remove(self._backend, path)
        self._outdated.clear()


def _remove(backend: Any, path: str) -> None:
    if backend.isdir(path):  # of a strategy that saves shards
        backend.rmtree(path)
    elif backend.isfile(path):
        backend.remove(path)
