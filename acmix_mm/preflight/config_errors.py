# SPDX-License-Identifier: Apache-2.0
"""Turn mistakes in configs and in the options that change them into one message each.

mmengine reports them with a traceback of its own functions that does not name the file, or ignores
them, as it does with misspelt keys.
"""

import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from types import FrameType
from typing import Any

import mmengine.registry
from mmengine.config import Config, DictAction
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import Registry
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from .type_name import type_name

# Top-level keys that mmengine and the tools read besides the arguments of mmengine's runner.
_KEYS = frozenset({
    'activation_checkpointing', 'backend_args', 'compile', 'custom_imports', 'data_root',
    'efficient_conv_bn_eval', 'find_unused_parameters', 'model_wrapper_cfg', 'optimizer',
    'runner_type', 'strategy', 'sync_bn', 'tta_model', 'tta_pipeline',
})  # fmt: skip
_TYPES: dict[str, tuple[type, ...]] = {
    'model': (dict,),
    'data_root': (str, type(None)),
    'work_dir': (str, type(None)),
    'load_from': (str, type(None)),
    'default_scope': (str, type(None)),
    'resume': (bool, type(None)),
}
# Classes whose arguments a part takes besides those of its type: data loaders have no type, and
# tools/train.py --amp changes that of the optimizer wrapper.
_CLASSES: dict[str, type] = {
    'train_dataloader': DataLoader,
    'val_dataloader': DataLoader,
    'test_dataloader': DataLoader,
    'optim_wrapper': AmpOptimWrapper,
}
_DICT = re.compile(r"""(?:^|[\[(,])["'\s]*(?:dict\(|\{.*\}["'\s]*(?:$|[\]),]))""", re.DOTALL)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_UNEXPECTED = 'got an unexpected keyword argument '
_WRONG_ARGUMENTS = (_UNEXPECTED, 'positional argument', 'multiple values for', 'required keyword')


class ConfigError(ValueError):
    """A mistake in a config or in an option that changes it. The message is one line."""


class OptionsAction(DictAction):
    """``DictAction`` of mmengine, which reports values of a wrong form as argparse does."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Parse ``KEY=VALUE`` pairs."""
        for value in values:
            key, equals, content = value.partition('=')
            if not equals or not all(key.split('.')):
                parser.error(f'argument {option_string}: expected KEY=VALUE, got {value!r}')
            if _DICT.search(content):
                parser.error(
                    f'argument {option_string}: {value}: a dict cannot be given on the command '
                    'line. Write it into a config that inherits this one, or set its entries one '
                    'by one, such as compile.mode=default or custom_hooks.0.interval=5'
                )
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, ValueError) as error:
            parser.error(f'argument {option_string}: {error}')


def read_config_file(path: str) -> Config:
    """Read a config file and those that it inherits from.

    Args:
        path: Path of the config file.

    Raises:
        ConfigError: One of the files cannot be read. The message names it and the line.

    Examples:
        >>> read_config_file('nowhere.py')
        Traceback (most recent call last):
        ...
        acmix_mm.preflight.config_errors.ConfigError: nowhere.py cannot be read: ...
    """
    try:
        return Config.fromfile(path)
    except Exception as error:  # a config is a program, which may raise any exception
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        readers = ('_file2dict', '_parse_lazy_import')
        names = [f.f_locals.get('filename') for f in frames if f.f_code.co_name in readers]
        file = str(names[-1]) if names else path
        reason = f'{type(error).__name__}: {error}'
        lines = [
            number
            for frame, number in traceback.walk_tb(error.__traceback__)
            if frame.f_code.co_filename == file
        ]
        if isinstance(error, SyntaxError):
            lines, reason = [error.lineno or 0], f'{type(error).__name__}: {error.msg}'
        elif isinstance(error, ModuleNotFoundError):
            reason = str(error)  # a library that the config inherits from
        where = f', line {lines[-1]}' if lines else ''
        of = '' if file.endswith(path) else f' ({path} inherits from it)'
        raise ConfigError(f'{file}{where} cannot be read{of}: {_line(reason)}.') from error


def merge_options(cfg: Config, options: Mapping[str, Any]) -> list[str]:
    """Apply ``--cfg-options`` to a config, in place.

    Args:
        cfg: Config to change.
        options: Values by keys such as ``'model.backbone.depth'``.

    Returns:
        list[str]: A warning of one line for each new key that may be misspelt, or that only
        classes of the user can read.

    Raises:
        ConfigError: A key is misspelt, or leads to what is not there.

    Examples:
        >>> merge_options(Config(dict(model=dict(type='RetinaNet'))), {'modle.x': 1})
        Traceback (most recent call last):
        ...
        acmix_mm.preflight.config_errors.ConfigError: modle.x=1: the config has no modle. Did ...
    """
    before, failure = cfg._cfg_dict, None
    try:
        cfg.merge_from_dict(dict(options))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        failure = error
    # A misspelt key explains a failure better than mmengine does.
    found = [_check_key(before, cfg, key, value) for key, value in options.items()]
    if failure:
        shown = ' '.join(f'{key}={value}' for key, value in options.items())
        raise ConfigError(
            f'{shown} cannot be applied to the config: {_line(failure)}.'
        ) from failure
    return [warning for warning in found if warning]


def check_values(cfg: Config, needed: Iterable[str] = ()) -> None:
    """Check the types of the values that are used before a model is built.

    Args:
        cfg: Config to check.
        needed: Keys that the config must have.

    Raises:
        ConfigError: A value has another type, or is missing.

    Examples:
        >>> check_values(Config(dict(load_from=5)))
        Traceback (most recent call last):
        ...
        acmix_mm.preflight.config_errors.ConfigError: this config: load_from must be a str or ...
    """
    name = cfg.filename or 'this config'
    for key, types in _TYPES.items():
        if key in cfg and not isinstance(cfg[key], types):
            kinds = ' or '.join('None' if kind is type(None) else f'a {kind.__name__}'
                                for kind in types)  # fmt: skip
            raise ConfigError(f'{name}: {key} must be {kinds}, got {cfg[key]!r}.')
    for key in needed:
        if cfg.get(key) is None:
            raise ConfigError(f'{name} has no {key}, which this tool needs.')


@contextmanager
def one_line_errors(cfg: Config) -> Iterator[None]:
    """Turn an exception that a wrong class or argument in a config raises into one message.

    The message names the config, the key of the part and its class, and for a misspelt argument the
    most similar one. Exceptions that are raised elsewhere, such as in training, or for another
    reason, such as a mistake in the code of a class, are not changed.

    Args:
        cfg: The config from which parts are built.

    Raises:
        ConfigError: The class of a part is not known, or does not take its arguments.
    """
    try:
        yield
    except Exception as error:  # classes of the config may raise any exception
        tail = list(traceback.walk_tb(error.__traceback__))
        built = [frame for frame, _ in tail if frame.f_code.co_name == 'build_from_cfg']
        frame, line = tail[-1]
        if not built or isinstance(error, ConfigError) or not _is_of_arguments(error, frame):
            raise
        part = built[-1].f_locals['cfg']
        reason = _line(error)
        if isinstance(error, TypeError) and _UNEXPECTED in reason:
            reason += _similar_argument(reason, frame)
        elif not isinstance(error, ValueError):
            reason = f'{type(error).__name__}: {reason} ({frame.f_code.co_filename}, line {line})'
        name = cfg.filename or 'this config'
        if isinstance(part, Mapping):
            name += f', {_place(cfg, part)} ({type_name(part.get("type"))})'
        raise ConfigError(f'{name}: {reason}.') from error


def _is_of_arguments(error: Exception, frame: FrameType) -> bool:
    """Return whether an error is one of mmengine's registry, or of the arguments of a class.

    mmdet and mmseg check many arguments with ``assert``, in the constructors.
    """
    if str(frame.f_globals.get('__name__')).startswith('mmengine.registry'):
        return True
    if isinstance(error, TypeError):
        return any(text in str(error) for text in _WRONG_ARGUMENTS)
    in_constructor = frame.f_code.co_name == '__init__'
    return isinstance(error, ValueError) or (isinstance(error, AssertionError) and in_constructor)


def _check_key(before: Mapping, cfg: Config, key: str, value: Any) -> str | None:
    """Raise an error if a part of a key is misspelt, or return a warning if it may be.

    Args:
        before: The config without the options.
        cfg: The config with all options, which may change classes.
        key: Key of an option.
        value: Value of it.
    """
    node: Any = before
    parts = key.split('.')
    option = f'{key}={value!r}'
    for i, part in enumerate(parts):
        above = '.'.join(parts[:i])
        if isinstance(node, list | tuple):
            if not part.isdigit() or int(part) >= len(node):
                raise ConfigError(
                    f'{option}: {above} is a list of {len(node)}, with the keys 0 to '
                    f'{len(node) - 1}, got {part!r}.'
                )
            node = node[int(part)]
        elif node is None:
            return None
        elif not isinstance(node, Mapping):
            raise ConfigError(f'{option}: {above} is {node!r}, which has no {part!r}.')
        elif part in node:
            node = node[part]
        else:
            names, others = _arguments(cfg, parts[:i])
            if part in names:
                return None
            similar = get_close_matches(part, sorted({*node, *names}), 1, 0.75)
            fault = f'{option}: {above or "the config"} has no {part}'
            meant = '.'.join([*parts[:i], *similar, *parts[i + 1 :]])
            if similar and not others:
                raise ConfigError(f'{fault}. Did you mean {meant}?')
            if similar:
                return f'{fault}, so it is added. Was {meant} meant?'
            if not above:
                return (
                    f'{fault}, so it is added, and nothing in mmengine or the tools reads {part}.'
                )
            return None
    return None


def _arguments(cfg: Config, place: Sequence[str]) -> tuple[set[str], bool]:
    """Return the arguments that the class at a place of a config has, and if it may take others."""
    node: Any = cfg._cfg_dict
    for part in place:
        try:
            node = node[int(part) if isinstance(node, list | tuple) else part]
        except (LookupError, TypeError, ValueError):  # another option has replaced what was there
            return set(), True
    key = '.'.join(place)
    if not key:
        return {*inspect.signature(Runner).parameters, *_KEYS}, False
    kind = node.get('type') if isinstance(node, Mapping) else None
    found = [kind]
    if isinstance(kind, str):
        scope = cfg.get('default_scope')
        registries = [r for r in vars(mmengine.registry).values() if isinstance(r, Registry)]
        found = [registry.children.get(scope, registry).get(kind) for registry in registries]
    classes: list[Callable] = [cls for cls in found if callable(cls)]
    if key in _CLASSES and (classes or kind is None):
        classes.append(_CLASSES[key])
    taken = [_parameters(cls) for cls in classes]
    others = not classes or any(more for _, more in taken)
    return {name for names, _ in taken for name in names}, others


def _parameters(cls: Callable) -> tuple[set[str], bool]:
    """Return the arguments of a class, and whether it takes others that its bases do not name.

    A class with ``**kwargs`` passes them on to its base.
    """
    names: set[str] = set()
    bases = inspect.getmro(cls)[:-1] if inspect.isclass(cls) else ()
    functions = [vars(base)['__init__'] for base in bases if '__init__' in vars(base)]
    for function in functions or [cls]:
        try:
            parameters = inspect.signature(function).parameters
        except ValueError:  # a class of C
            return names, True
        variadic = {n: p.kind for n, p in parameters.items() if p.kind in _VARIADIC}
        names |= parameters.keys() - variadic.keys() - {'self'}
        if inspect.Parameter.VAR_KEYWORD not in variadic.values():
            return names, False
    return names, True


def _similar_argument(message: str, frame: FrameType) -> str:
    """Return a question for the argument that a class has instead of an unexpected one."""
    name = message.partition('.')[0].rpartition(' ')[2]
    wrong = message.partition(_UNEXPECTED)[2].strip("'")
    values = [*frame.f_globals.values(), *frame.f_locals.values()]
    classes = [v if inspect.isclass(v) else type(v) for v in values]
    known = [c for cls in classes for c in inspect.getmro(cls) if c.__name__ == name]
    names = [n for cls in known[:1] for n in inspect.signature(cls).parameters]
    similar = get_close_matches(wrong, names, 1)
    return f'. Did you mean {similar[0]}?' if similar else f'. It has {", ".join(names)}'


def _place(cfg: Config, part: Mapping) -> str:
    """Return the key under which a config has a part; models may have changed their copy of it."""
    kind = type_name(part.get('type'))
    alike = {
        place: node for place, node in _parts(cfg._cfg_dict) if type_name(node['type']) == kind
    }
    same = [place for place, node in alike.items() if node == part] or list(alike)
    return ' or '.join(same) or 'a part that the config does not name'


def _parts(config: Any, place: str = '') -> Iterator[tuple[str, Mapping]]:
    """Yield the configs of all parts, with their keys."""
    if isinstance(config, Mapping) and place and 'type' in config:
        yield place, config
    if isinstance(config, Mapping | list | tuple):
        items = config.items() if isinstance(config, Mapping) else enumerate(config)
        for key, value in items:
            yield from _parts(value, f'{place}.{key}' if place else str(key))


def _line(text: object) -> str:
    return ' '.join(str(text).split()).rstrip('.!')
