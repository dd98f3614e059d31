# SPDX-License-Identifier: Apache-2.0
"""Read files of ``torch.save`` restricted to tensors, plain containers and given classes."""

import pickle
import tarfile
from _codecs import encode
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import RLock
from types import SimpleNamespace
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor, nn

# Classes by the names, module and qualified name, under which pickle knows what they stand for.
StandIns = Mapping[tuple[str, str], type]
_LOCK = RLock()


def load_restricted(
    file: Path | BinaryIO, stand_ins: StandIns, map_location: Any = 'cpu', mmap: bool = False
) -> Any:
    """Read a file with ``torch.load(weights_only=True)``, with some classes replaced by stand-ins.

    What other code has allowed with ``torch.serialization.add_safe_globals`` is not allowed here.

    Versions of torch before 2.5 cannot be told of the stand-ins. There an unpickler of our own does
    the same.

    Args:
        file: Path of a file that ``torch.save`` wrote, or such a file opened for reading.
        stand_ins: Classes to use instead of other classes and functions, by the module and name of
            the latter. Their ``__setstate__`` gets the state of an instance.
        map_location: Where to put the tensors, as for ``torch.load``. Default: ``'cpu'``.
        mmap: Whether to leave the tensors on the disk until they are used. It needs a path.
            Default: False.

    Returns:
        Any: Content of the file.

    Raises:
        UnpicklingError: The file contains a class or function that is not allowed.
        RuntimeError: The file is not one that ``torch.save`` wrote.
    """
    if not hasattr(torch.serialization, 'safe_globals'):
        return _load_with_own_unpickler(file, stand_ins, map_location, mmap)
    classes: list[Any] = [
        type(name, (base,), dict(__module__=module, __qualname__=name))
        for (module, name), base in stand_ins.items()
    ]
    with _allowing_only(classes):
        return torch.serialization.load(
            _by_name(file), map_location=map_location, mmap=mmap, weights_only=True
        )


@contextmanager
def _allowing_only(classes: list[Any]) -> Iterator[None]:
    """Set the classes that torch allows in this process besides its own, for a time."""
    with _LOCK:
        before = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(classes)
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


def _load_with_own_unpickler(
    file: Path | BinaryIO, stand_ins: StandIns, map_location: Any = 'cpu', mmap: bool = False
) -> Any:
    opened: Any
    with open(file, 'rb') if isinstance(file, Path) else nullcontext(file) as opened:
        # torch.load would extract the members of an archive with whatever permissions it asks for.
        if tarfile.is_tarfile(opened):
            raise RuntimeError('it is a tar archive')
        opened.seek(0)
        if torch.serialization._is_zipfile(opened):
            with torch.serialization._open_zipfile_reader(opened) as archive:
                # torch.load would call torch.jit.load, and a program may run while it is loaded.
                if torch.serialization._is_torchscript_zip(archive):
                    raise RuntimeError('it is a TorchScript archive')
        opened.seek(0)

    class Unpickler(_Unpickler):
        allowed_stand_ins = stand_ins

    module = SimpleNamespace(
        __name__=__name__,
        Unpickler=Unpickler,
        load=lambda file, **options: Unpickler(file, **options).load(),
    )
    return torch.serialization.load(
        _by_name(file),
        map_location=map_location,
        pickle_module=module,
        mmap=mmap,
        weights_only=False,
    )


def _by_name(file: Path | BinaryIO) -> str | BinaryIO:
    # torch 2.1 maps only files whose name is a string.
    return str(file) if isinstance(file, Path) else file


class _Unpickler(pickle._Unpickler):
    """Unpickler that allows what torch's restricted one allows, and the stand-ins.

    It extends Python's implementation in Python, because the one in C has no method for building
    instances that could be restricted.
    """

    allowed_stand_ins: StandIns = {}
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def load(self) -> Any:
        """Read one object. Damage is an error of one type, as in pickle's implementation in C."""
        try:
            return super().load()
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise pickle.UnpicklingError(f'the file is damaged: {error!r}') from error

    def find_class(self, module: str, name: str) -> Any:
        """Return a class or function by its name, if it is allowed."""
        module = module.replace('__builtin__', 'builtins')  # its name in pickle's protocol 2
        if (module, name) in self.allowed_stand_ins:
            return self.allowed_stand_ins[module, name]
        if (module, name) == ('_codecs', 'encode'):  # how protocol 2 stores bytes
            return encode
        allowed = torch._weights_only_unpickler._get_allowed_globals()
        if f'{module}.{name}' not in allowed:
            refused = f'{module}.{name}'.removeprefix('builtins.')
            raise pickle.UnpicklingError(f'GLOBAL {refused} is not allowed')
        return allowed[f'{module}.{name}']

    def load_build(self) -> None:
        """Set the state of an instance. Pickle would also set attributes of classes."""
        state, instance = self.stack.pop(), self.stack[-1]
        if type(instance) in (Tensor, nn.Parameter, *self.allowed_stand_ins.values()):
            instance.__setstate__(state)
        elif type(instance) is OrderedDict:
            instance.__dict__.update(state)
        else:
            raise pickle.UnpicklingError(f'GLOBAL {instance!r} is not to be changed')

    dispatch[pickle.BUILD[0]] = load_build
