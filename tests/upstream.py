"""Import of mmpretrain's parts, also where torchvision is missing, which some of them need."""

import sys
from importlib import import_module
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from types import ModuleType

import pytest


def mmpretrain(name: str) -> ModuleType:
    """Import a module or package of mmpretrain, such as ``'models.backbones'``, or skip the test.

    Without torchvision the packages around it cannot be imported, but it can: for the time of the
    import they are entered as packages without content.
    """
    if find_spec('mmpretrain') is None:
        pytest.skip('mmpretrain is not installed')
    parts = ['mmpretrain', *name.split('.')]
    with pytest.MonkeyPatch.context() as patch:
        if find_spec('torchvision') is None:
            root = Path(import_module('mmpretrain').__path__[0])
            for parent in list(accumulate(parts, '{}.{}'.format))[1:-1]:
                package = ModuleType(parent)
                package.__path__ = [str(root.joinpath(*parent.split('.')[1:]))]
                patch.setitem(sys.modules, parent, package)
        return import_module('.'.join(parts))
