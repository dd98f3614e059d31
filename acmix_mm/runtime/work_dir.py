# SPDX-License-Identifier: Apache-2.0
"""The folder of a training: its newest checkpoint, and one training at a time."""

import glob
import os
import socket
import string
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

from mmengine.config import Config

from ..checkpoints.files import read_checkpoint
from ..hooks.checkpoint import checkpoint_folder

LOCK = '.lock'
# Where launchers tell a process its rank.
_RANKS = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')
_HOOK: dict[str, Any] = dict(out_dir=None, by_epoch=True, filename_tmpl=None)  # its defaults


def resume(cfg: Config, checkpoint: str) -> None:
    """Change a config, in place, to resume a training.

    The seed of the training is set too, because mmengine builds the data loaders before it reads
    the seed from the checkpoint.

    A file that is not the state of a training ends the process with one message.

    Args:
        cfg: Config with its ``work_dir``.
        checkpoint: Path or address of a checkpoint, or ``'auto'`` for the newest one in the work
            dir. If there is none, the config is changed to begin. Where checkpoints are folders of
            shards, or not on a local disk, mmengine finds the newest one.
    """
    folder, pattern = _checkpoints(cfg)
    if checkpoint == 'auto' and (
        '://' in folder or any(map(Path.is_dir, Path(folder).glob(pattern)))
    ):
        cfg.resume, cfg.load_from = True, None  # mmengine reads last_checkpoint
        return
    path = newest_checkpoint(cfg) if checkpoint == 'auto' else checkpoint
    cfg.resume = path is not None
    if path is None:
        _say(f'No checkpoint to resume from in {cfg.work_dir}: the training begins.')
        return
    cfg.load_from = str(path)
    try:
        seed = training_state(Path(path))['meta'].get('seed')
    except OSError:  # missing, which is reported with the other inputs, or not a local file
        return
    except ValueError as error:
        if _is_first_of_the_machine():
            sys.exit(f'{error}. --resume needs a checkpoint that a training saved.')
        return
    randomness = cfg.get('randomness') or {}
    if randomness.get('seed') is None:
        cfg.randomness = dict(randomness, seed=seed)


def newest_checkpoint(cfg: Config) -> Path | None:
    """Return the newest checkpoint of a training that is complete, or None if there is none.

    Which one is the newest is read from the files. So it matters neither whether
    ``last_checkpoint`` was written, nor whether the folder was moved or copied. Files that cannot
    be used are printed with the reason.

    Args:
        cfg: Config with its ``work_dir`` and checkpoint hook.
    """
    folder, pattern = _checkpoints(cfg)
    found = []
    for path in sorted(Path(folder).glob(pattern)):
        try:
            meta = training_state(path)['meta']
        except (OSError, ValueError) as error:
            _pass_over(path, str(error))
        else:
            found.append((str(meta.get('time', '')), meta['iter'], path))
    for _, _, path in sorted(found, reverse=True):
        damage = _damage(path)
        if damage is None:
            return path
        _pass_over(path, damage)
    return None


def _checkpoints(cfg: Config) -> tuple[str, str]:
    """Return where the checkpoint hook of a config saves: the folder, and a pattern of names."""
    hook = _HOOK | dict((cfg.get('default_hooks') or {}).get('checkpoint') or {})
    folder = checkpoint_folder(hook['out_dir'], str(cfg.work_dir))
    template = hook['filename_tmpl'] or ('epoch_{}.pth' if hook['by_epoch'] else 'iter_{}.pth')
    fields = string.Formatter().parse(template)
    pattern = [glob.escape(text) + ('' if name is None else '*') for text, name, _, _ in fields]
    return folder, ''.join(pattern)


def training_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a training, and leave its tensors on the disk until they are used.

    Args:
        path: Path of the file.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not complete, or is another kind of file.
    """
    checkpoint = read_checkpoint(path, mmap=True)
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if (
        not isinstance(meta, dict)
        or not isinstance(meta.get('iter'), int)
        or not checkpoint.keys() >= {'state_dict', 'message_hub'}
    ):
        raise ValueError(f'{path} is not the state of a training, only weights')
    return checkpoint


def _damage(path: Path) -> str | None:
    """Compare the content with the checksums that ``torch.save`` writes, and torch ignores."""
    if not is_zipfile(path):
        return None
    try:
        with ZipFile(path) as file:
            damaged = file.testzip()
    except (BadZipFile, OSError) as error:
        return f'it is damaged: {error}'
    return damaged and f'it is damaged: the checksum of {damaged} is wrong'


def _pass_over(path: Path, reason: str) -> None:
    _say(f'Passed over {path}: {reason}')


def _say(text: str) -> None:
    if _is_first_of_the_machine():
        print(text, file=sys.stderr, flush=True)


def _is_first_of_the_machine() -> bool:
    return os.environ.get('LOCAL_RANK', '0') == '0'


@contextmanager
def locked(cfg: Config) -> Iterator[None]:
    """Keep other trainings out of the work dir, see :func:`locked_folder`.

    Args:
        cfg: Config with its ``work_dir`` and ``launcher``. The first process of a job locks the
            folder.
    """
    if os.environ.get(_RANKS.get(cfg.get('launcher', 'none'), ''), '0') != '0':
        yield
        return
    with locked_folder(Path(cfg.work_dir)):
        yield


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder of results. End with one message if one works there.

    The operating system removes the lock when the process ends in any way, so a lock cannot be left
    behind. The file stays; it says which process locked the folder last.

    Args:
        folder: The folder, which is made if need be.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        _say(f'{folder} cannot be locked on this system: start only one command in it.')
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open('a+')
    except OSError as error:
        sys.exit(f'The work dir {folder} cannot be used: {error.strerror}.')
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            owner = file.read().strip() or 'an unknown process'
            sys.exit(
                f"Another command runs in {folder}: {owner}. Two would overwrite each other's "
                'files. Wait for it or end it, or choose another --work-dir.'
            )
        except OSError as error:
            _say(f'{folder} cannot be locked ({error.strerror}): start only one command in it.')
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
        file.flush()
        yield
