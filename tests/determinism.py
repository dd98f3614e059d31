"""Deterministic algorithms of torch, and what they are asked of."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def deterministic() -> Iterator[None]:
    """Context in which torch uses deterministic algorithms alone."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def operators_called(function: Callable[[], Any]) -> set[str]:
    """Return the names of the operators that a function calls, such as ``'aten::add'``."""
    names = set()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            names.add(func.name().split('.')[0])
            return func(*args, **kwargs or {})

    with Record():
        function()
    return names
