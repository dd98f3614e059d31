# SPDX-License-Identifier: Apache-2.0
"""Replacements for the classes and functions that training states contain besides plain values.

They keep values and run nothing: numbers and arrays of numpy are decoded from their bytes here, and
a log of mmengine becomes a :class:`History`. ``getattr`` and everything else is ignored.
"""

import re
from collections import OrderedDict
from typing import Any

import numpy as np

# What numpy itself calls its types of numbers and of text of a fixed length.
_PLAIN_DTYPE = re.compile(r'[biufcSU]\d+')


class Ignored:
    """Replacement for a class or function: accepts any arguments and does nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class PlainMapping(OrderedDict):
    """Replacement for a class of settings: the plain mapping that it contains."""

    def __new__(cls, *_: Any) -> OrderedDict:  # type: ignore[misc]
        """Return an empty mapping, which is filled next."""
        return OrderedDict()


class Slice:
    """Replacement for ``slice``: a slice, which holds three values."""

    def __new__(cls, *bounds: Any) -> slice:  # type: ignore[misc]
        """Return the slice."""
        return slice(*bounds)


class NoBytes:
    """Replacement for ``bytes``, which only stands for empty ones: no bytes."""

    def __new__(cls) -> bytes:  # type: ignore[misc]
        """Return empty bytes."""
        return b''


class DType:
    """Replacement for ``numpy.dtype``."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code
        self.order: Any = '='

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def plain(self) -> np.dtype | None:
        """Return the type of numbers or text, or None for any other type."""
        if not isinstance(self.code, str) or not _PLAIN_DTYPE.fullmatch(self.code):
            return None
        return np.dtype(self.code).newbyteorder(self.order)


class Scalar:
    """Replacement for the function that restores a number of numpy: the number."""

    def __new__(cls, dtype: Any, content: Any = b'') -> Any:
        """Return the number, or a replacement without a value for any other type."""
        plain = dtype.plain() if isinstance(dtype, DType) else None
        return super().__new__(cls) if plain is None else np.frombuffer(content, plain, count=1)[0]

    def __setstate__(self, _: Any) -> None:
        pass


class Array:
    """Replacement for the function that restores an array of numpy: holds the array."""

    def __init__(self, *_: Any) -> None:
        self.content: Any = self

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, content = state
        plain = dtype.plain() if isinstance(dtype, DType) else None
        if plain is not None:
            flat = np.frombuffer(content, plain)
            self.content = flat.reshape(shape, order='F' if is_fortran else 'C').copy()


class History:
    """Replacement for mmengine's ``HistoryBuffer``: the values that it holds.

    Attributes:
        values: Logged values.
        counts: How many times each value counts in an average.
        max_length: How many values the buffer keeps.
    """

    def __init__(self, *_: Any) -> None:
        self.values: np.ndarray = np.zeros(0)
        self.counts: np.ndarray = np.zeros(0)
        self.max_length = 1_000_000

    def __setstate__(self, state: Any) -> None:
        self.values = restore(state['_log_history'])
        self.counts = restore(state['_count_history'])
        self.max_length = state['max_length']
        if not self.values.shape == self.counts.shape == (len(self.values),):
            raise ValueError('a log has not as many values as counts')


_NUMPY = [f'numpy.{core}.multiarray' for core in ('core', '_core')]  # in numpy 1 and 2
# Logs of mmengine (numpy numbers and references to methods), arguments of PVT's training script,
# and settings of Swin's training script.
STAND_INS: dict[tuple[str, str], type] = {
    ('mmengine.logging.history_buffer', 'HistoryBuffer'): History,
    ('builtins', 'getattr'): Ignored,
    ('builtins', 'slice'): Slice,
    ('builtins', 'bytes'): NoBytes,
    ('numpy', 'ndarray'): Ignored,
    ('numpy', 'dtype'): DType,
    **{(module, '_reconstruct'): Array for module in _NUMPY},
    **{(module, 'scalar'): Scalar for module in _NUMPY},
    ('argparse', 'Namespace'): Ignored,
    ('yacs.config', 'CfgNode'): PlainMapping,
}


def restore(value: Any, done: dict[int, Any] | None = None) -> Any:
    """Return a value with arrays instead of their replacements; dicts and lists change in place.

    Args:
        value: What was read. It may contain itself.
        done: Results by the ids of what they replace.
    """
    done = {} if done is None else done
    if isinstance(value, Array):
        return value.content
    if id(value) in done or not (type(value) is tuple or isinstance(value, dict | list)):
        return done.get(id(value), value)
    done[id(value)] = value
    if isinstance(value, dict):
        value.update({key: restore(item, done) for key, item in value.items()})
    elif isinstance(value, list):
        value[:] = [restore(item, done) for item in value]
    else:
        done[id(value)] = tuple(restore(item, done) for item in value)
    return done[id(value)]
