"""Fixtures that several tests share, and what makes tests fast."""

import os
import runpy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

# Read when torch is imported: by default, threads that wait for others keep their core busy, and
# tests take many times as long when the machine has anything else to do.
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')

import torch

# Read when Triton is imported: without a GPU, its kernels are tested in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')

from mmengine.config import utils

# For every config that inherits from a library, mmengine reads all of the library's metafiles.
utils.load = cache(utils.load)

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
