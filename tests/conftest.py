"""Fixtures that several tests share, and settings that make the tests fast."""

import os
import runpy
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

# OpenMP reads this variable when torch is imported. By default, waiting threads keep their core
# busy, which makes the tests many times slower on a machine that has other work to do.
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')

import torch

# Triton reads this variable when it is imported. Without a GPU, its interpreter runs the kernels.
if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')

from mmengine.config import utils

# For every config that inherits from one of mmdet or mmseg, mmengine parses all metafiles of that
# library, hundreds of YAML files. Here each of them is parsed only once. Every caller gets its own
# copy, and a changed file is parsed again, so the result is the same as without the cache.
_load = utils.load


@cache
def _parse(file: str, _modified: int) -> Any:
    return _load(file)


utils.load = lambda file: deepcopy(_parse(file, os.stat(file).st_mtime_ns))

ROOT = Path(__file__).parents[1]
# It registers classes, and pytest would import it a second time to look for doctests.
collect_ignore = ['tiny_training.py']


@pytest.fixture(autouse=True)
def seed() -> None:
    """Give a test the same random numbers in every run: no tolerance holds for all of them."""
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def tool() -> Callable[[str], SimpleNamespace]:
    """Return a function that runs a command-line tool as a module: ``tool('train.py').main``."""
    return lambda name: SimpleNamespace(**runpy.run_path(str(ROOT / 'tools' / name)))


@pytest.fixture(scope='session')
def shapes(tool, tmp_path_factory) -> Path:
    """Make a shapes data set of 8 training and 4 validation images, and return its folder."""
    folder = tmp_path_factory.mktemp('shapes')
    tool('dataset/make_shapes.py').main(['--out', str(folder), '--train', '8', '--val', '4'])
    return folder
