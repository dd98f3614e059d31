# SPDX-License-Identifier: Apache-2.0
"""Check values of the command line before a tool does anything."""

import os
import tempfile
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path


def whole_number(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Return a function that parses a whole number, for the ``type`` of an argument of argparse.

    Args:
        minimum: Smallest number that is accepted.
        maximum: Largest number that is accepted, or None for no limit. Default: None.

    Examples:
        >>> whole_number(1)('12')
        12
        >>> whole_number(1)('-3')
        Traceback (most recent call last):
        ...
        argparse.ArgumentTypeError: must be a whole number of at least 1, got '-3'
    """

    def parse(text: str) -> int:
        limits = f'of at least {minimum}' if maximum is None else f'from {minimum} to {maximum}'
        error = ArgumentTypeError(f'must be a whole number {limits}, got {text!r}')
        try:
            number = int(text)
        except ValueError:
            raise error from None
        if number < minimum or (maximum is not None and number > maximum):
            raise error
        return number

    return parse


def existing_file(text: str) -> Path:
    """Return the path of a file that exists, for the ``type`` of an argument of argparse.

    Examples:
        >>> existing_file('nowhere/model-index.yml')
        Traceback (most recent call last):
        ...
        argparse.ArgumentTypeError: there is no file nowhere/model-index.yml ...
    """
    path = Path(text)
    if not path.is_file():
        raise ArgumentTypeError(f'there is no file {text} (working directory: {Path.cwd()})')
    return path


def check_output_folder(path: str | Path, option: str) -> None:
    """Create a folder, and check that files can be written to it.

    Args:
        path: Path of the folder.
        option: The option that names it, for messages.

    Raises:
        ValueError: The folder cannot be created, or nothing can be written to it.

    Examples:
        >>> check_output_folder('/dev/null/work', '--work-dir')
        Traceback (most recent call last):
        ...
        ValueError: --work-dir /dev/null/work: nothing can be written there (Not a directory). ...
    """
    if not str(path) or '\0' in str(path):
        raise ValueError(f'{option} needs the path of a folder, got {str(path)!r}.')
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = 'it is a file' if isinstance(error, FileExistsError) else error.strerror
        raise ValueError(
            f'{option} {path}: nothing can be written there ({reason}). Name another folder.'
        ) from error


def check_output_file(path: str | Path, option: str) -> None:
    """Check that a file can be written, and create its folder. A file that is there is kept.

    Args:
        path: Path of the file.
        option: The option that names it, for messages.

    Raises:
        ValueError: The path names a folder, or nothing can be written there.

    Examples:
        >>> check_output_file('.', '--out')
        Traceback (most recent call last):
        ...
        ValueError: --out needs the path of a file, got '.', which is a folder.
    """
    text = str(path)
    if os.path.isdir(path) or text.endswith('/'):
        raise ValueError(f'{option} needs the path of a file, got {text!r}, which is a folder.')
    if not text or '\0' in text:
        raise ValueError(f'{option} needs the path of a file, got {text!r}.')
    check_output_folder(os.path.dirname(path) or '.', option)
    if os.path.exists(path) and not os.access(path, os.W_OK):
        raise ValueError(f'{option} {path}: the file cannot be written. Name another one.')


def check_launcher(launcher: str) -> None:
    """Check that the processes of a distributed job were started with the launcher that is named.

    Args:
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        ValueError: The launcher has not set the variables that every process of a job needs.

    Examples:
        >>> check_launcher('none')
    """
    variables, start = {
        'pytorch': (('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'), 'torchrun'),
        'slurm': (('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'), 'srun'),
        'mpi': (('OMPI_COMM_WORLD_LOCAL_RANK', 'MASTER_ADDR'), 'mpirun'),
    }.get(launcher, ((), ''))
    missing = [name for name in variables if name not in os.environ]
    if missing:
        raise ValueError(
            f'--launcher {launcher}: {", ".join(missing)} of the environment is not set, so this '
            f'process was not started with {start}. Start it with {start} '
            '(tools/dist_train.sh and tools/dist_test.sh do), or leave --launcher out.'
        )
