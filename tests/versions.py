"""Marks for tests of what older versions of torch cannot do, and of what may not be installed."""

from importlib.util import find_spec

import pytest
import torch
from packaging.version import Version

from acmix_mm.checkpoints import unpickler


def needs_torch(minimum: str, reason: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test with an older torch.

    Args:
        minimum: First version of torch with which the test passes.
        reason: What older versions lack.
    """
    old = Version(torch.__version__).release < Version(minimum).release
    return pytest.mark.skipif(old, reason=f'torch {minimum} or newer is needed: {reason}')


needs_compiler = needs_torch('2.5', 'torch.compile and torch.export trace the operators')
needs_opcheck = needs_torch('2.4', 'torch.library.opcheck')
needs_fused_attention = needs_torch('2.5', 'fused attention under a mask on CPUs')
needs_half_on_cpu = needs_torch('2.5', 'float16 on CPUs')
needs_safe_torch_load = needs_torch('2.6', 'torch.load reads weights only by default')
needs_safe_globals = needs_torch('2.5', 'torch.serialization.safe_globals')
# Both ways in which checkpoints are read.
LOADERS = [
    pytest.param(
        unpickler.load_restricted,
        id='torch',
        marks=needs_safe_globals,
    ),
    pytest.param(unpickler._load_with_own_unpickler, id='older torch'),
]
needs_mmpretrain = pytest.mark.skipif(
    find_spec('mmpretrain') is None, reason='mmpretrain is not installed, whose configs are bases'
)
