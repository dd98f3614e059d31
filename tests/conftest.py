"""Fixtures that several tests share."""

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='session')
def tool() -> Callable[[str], SimpleNamespace]:
    """Names of a command-line tool, such as ``tool('train.py').main``."""
    return lambda name: SimpleNamespace(**runpy.run_path(str(ROOT / 'tools' / name)))


@pytest.fixture(scope='session')
def shapes(tool, tmp_path_factory) -> Path:
    """A shapes data set of 8 training and 4 validation images."""
    folder = tmp_path_factory.mktemp('shapes')
    tool('dataset/make_shapes.py').main(['--out', str(folder), '--train', '8', '--val', '4'])
    return folder
