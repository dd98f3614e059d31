# SPDX-License-Identifier: Apache-2.0
"""A clear error for arguments that have a new name."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

T = TypeVar('T', bound=type)


def renamed_arguments(**renamed: str) -> Callable[[T], T]:
    """Class decorator that names the new spelling of an argument used under its old name.

    Args:
        **renamed: What to write now, by the old name.

    Examples:
        >>> @renamed_arguments(groups='pairs')
        ... class Layer:
        ...     def __init__(self, pairs: int = 1) -> None: ...
        >>> Layer(groups=2)
        Traceback (most recent call last):
        ...
        TypeError: Layer: the argument groups=2 is now written pairs
    """

    def decorate(cls: T) -> T:
        init = cls.__init__  # type: ignore[misc]

        @wraps(init)
        def checked_init(self: Any, *args: Any, **kwargs: Any) -> None:
            for old in renamed.keys() & kwargs.keys():
                raise TypeError(
                    f'{cls.__name__}: the argument {old}={kwargs[old]!r} is now written '
                    f'{renamed[old]}'
                )
            init(self, *args, **kwargs)

        cls.__init__ = checked_init  # type: ignore[misc]
        return cls

    return decorate
