# SPDX-License-Identifier: Apache-2.0
"""Turn mistakes in configs and in the options that change them into one message each.

mmengine reports them with a traceback of its own functions that does not name the file, or ignores
them, as it does with misspelt keys.
"""

import inspect
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from types import FrameType
from typing import Any

import mmengine.registry
from mmengine.config import Config, DictAction
from mmengine.registry import Registry
from mmengine.runner import Runner

from .type_name import type_name

# Top-level keys that mmengine and the tools read besides the arguments of mmengine's runner.
_KEYS = frozenset({
    'activation_checkpointing', 'backend_args', 'compile', 'custom_imports', 'data_root',
    'efficient_conv_bn_eval', 'find_unused_parameters', 'model_wrapper_cfg', 'optimizer',
    'runner_type', 'strategy', 'sync_bn', 'tta_model', 'tta_pipeline',
})  # fmt: skip
_TYPES: dict[str, tuple[type, ...]] = {
    'model': (dict,),
    'data_root': (str,),
    'work_dir': (str,),
    'load_from': (str, type(None)),
    'default_scope': (str, type(None)),
    'resume': (bool,),
}
_UNEXPECTED = 'got an unexpected keyword argument '


class ConfigError(ValueError):
    """A mistake in a config or in an option that changes it. The message is one line."""


class OptionsAction(DictAction):
    """``DictAction`` of mmengine, which reports values of a wrong form as argparse does."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Parse ``KEY=VALUE`` pairs."""
        for value in values:
            key, equals, _ = value.partition('=')
            if not equals or not all(key.split('.')):
                parser.error(f'argument {option_string}: expected KEY=VALUE, got {value!r}')
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


def merge_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Apply ``--cfg-options`` to a config, in place.

    Args:
        cfg: Config to change.
        options: Values by keys such as ``'model.backbone.depth'``.

    Raises:
        ConfigError: A key is misspelt, or leads to what is not there.

    Examples:
        >>> merge_options(Config(dict(model=dict(type='RetinaNet'))), {'modle.x': 1})
        Traceback (most recent call last):
        ...
        acmix_mm.preflight.config_errors.ConfigError: modle.x=1: the config has no modle. Did ...
    """
    for key, value in options.items():
        _check_key(cfg, key, value)
    try:
        cfg.merge_from_dict(dict(options))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        shown = ' '.join(f'{key}={value}' for key, value in options.items())
        raise ConfigError(f'{shown} cannot be applied to the config: {_line(error)}.') from error


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
    """Turn an exception raised while a part of a config is built into one message.

    The message names the config, the key of the part and its class, and for a misspelt argument the
    most similar one. Exceptions that are raised elsewhere, such as in training, are not changed.

    Args:
        cfg: The config from which parts are built.

    Raises:
        ConfigError: A part cannot be built.
    """
    try:
        yield
    except Exception as error:  # classes of the config may raise any exception
        tail = list(traceback.walk_tb(error.__traceback__))
        built = [frame for frame, _ in tail if frame.f_code.co_name == 'build_from_cfg']
        if not built or isinstance(error, ConfigError):
            raise
        frame, line = tail[-1]
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


def _check_key(cfg: Config, key: str, value: Any) -> None:
    """Raise an error if a part of a key is misspelt."""
    node: Any = cfg._cfg_dict
    parts = key.split('.')
    for i, part in enumerate(parts):
        above, option = '.'.join(parts[:i]), f'{key}={value!r}'
        if isinstance(node, list | tuple):
            if not part.isdigit() or int(part) >= len(node):
                raise ConfigError(
                    f'{option}: {above} is a list of {len(node)}, with the keys 0 to '
                    f'{len(node) - 1}, got {part!r}.'
                )
            node = node[int(part)]
        elif not isinstance(node, Mapping):
            if node is None:
                return
            raise ConfigError(f'{option}: {above} is {node!r}, which has no {part!r}.')
        elif part in node:
            node = node[part]
        else:
            if above:
                arguments = _arguments(node, cfg.get('default_scope'))
            else:
                arguments = {*inspect.signature(Runner).parameters, *_KEYS}
            similar = get_close_matches(part, sorted({*node, *arguments}), 1, 0.75)
            if part in arguments:
                return
            if similar:
                where = above or 'the config'
                raise ConfigError(
                    f'{option}: {where} has no {part}. Did you mean '
                    f'{".".join([*parts[:i], similar[0], *parts[i + 1 :]])}?'
                )
            if not above:
                raise ConfigError(
                    f'{option}: the config has no {part}, and nothing reads a key of that name.'
                )
            return


def _arguments(config: Mapping, scope: str | None) -> set[str]:
    """Return the names of the arguments of a config's class, or nothing if it is not known."""
    kind = config.get('type')
    found = [kind]
    if isinstance(kind, str):
        for registry in vars(mmengine.registry).values():
            if isinstance(registry, Registry):
                found.append(registry.children.get(scope, registry).get(kind))
    return {name for cls in found if callable(cls) for name in inspect.signature(cls).parameters}


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
