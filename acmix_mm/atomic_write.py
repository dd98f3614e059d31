# SPDX-License-Identifier: Apache-2.0
"""Write files so that a path never holds half of one."""

import os
import shutil
import stat
from contextlib import suppress
from errno import EISDIR
from pathlib import Path
from uuid import uuid4

# Names of files that are being written.
TEMPORARY = '.acmix-mm-*.tmp'


class WriteError(OSError):
    """A file cannot be written. The message names it and the reason."""


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a file beside its place, and rename it when it is complete.

    Whenever the process is killed, and if the disk is full, ``path`` holds either all of its former
    content or all of the new one. The new content is on the disk when the function returns.

    A symbolic link keeps pointing to the file that is replaced. What is not a regular file, such as
    ``/dev/stdout``, is written in place.

    Args:
        path: Path of the file. Its folder is created if needed.
        content: Text, which is encoded as UTF-8, or bytes.

    Raises:
        WriteError: The file cannot be written. A former file is unchanged.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), 'results.md')
        >>> write_atomically(path, 'mAP 38.0')
        >>> path.read_text()
        'mAP 38.0'
    """
    data = content.encode() if isinstance(content, str) else content
    target = Path(os.path.realpath(path))
    temporary = target.parent / TEMPORARY.replace('*', f'{os.getpid()}-{uuid4().hex[:8]}')
    try:
        if os.path.isdir(target):
            raise IsADirectoryError(EISDIR, 'it is a folder, not the path of a file')
        if os.path.exists(target) and not os.path.isfile(target):
            target.write_bytes(data)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(temporary, data)
        put_in_place(temporary, target)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        reason = error.strerror or str(error)
        kept = ' What it contained before is kept.' if os.path.isfile(target) else ''
        raise WriteError(f'{str(path)!r} cannot be written: {reason}.{kept}') from error


def _write(path: Path, data: bytes) -> None:
    with path.open('xb') as file:
        file.write(data)


def put_in_place(temporary: Path, target: Path) -> None:
    """Rename what is complete, after bringing it to the disk.

    Args:
        temporary: A file or a folder in the folder of ``target``.
        target: Its final path. A file there is replaced at once and keeps its permissions; a folder
            there is removed first.

    Raises:
        OSError: It cannot be done.
    """
    for file in temporary.rglob('*') if temporary.is_dir() else [temporary]:
        _sync(file)
    if target.is_dir():
        shutil.rmtree(target)
    elif target.exists():
        temporary.chmod(stat.S_IMODE(target.stat().st_mode))
    os.replace(temporary, target)
    with suppress(OSError):  # not all file systems can sync folders
        _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: str | Path) -> None:
    """Remove what killed processes left of files that they were writing.

    Args:
        folder: Folder that no other process writes to.
    """
    for path in Path(folder).glob(TEMPORARY):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
