"""What `import acmix_mm` tells mmengine, and that it changes nothing else."""

import logging
from importlib.util import find_spec

import mmengine
import pytest
from fresh_process import run_python
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import MODELS, OPTIMIZERS

from acmix_mm import registry


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_config_inherits_from_installed_libraries(tmp_path, scope):
    if not find_spec(scope):  # not imported: without torchvision, mmpretrain can only be found
        pytest.skip(f'{scope} is not installed')
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = '{scope}::_base_/default_runtime.py'")
    assert Config.fromfile(config).default_scope == scope


@pytest.mark.parametrize(
    ('distribution', 'name'),
    [('onedl-mmsegmentation', 'mmseg'), ('mmsegmentation', 'mmsegmentation')],
)
def test_only_the_fork_of_mmseg_is_looked_up_by_its_module(monkeypatch, distribution, name):
    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
    monkeypatch.setattr(
        registry, 'installed_distributions', lambda library: {distribution: '1.2.2'}
    )
    registry.register_config_names()
    assert MODULE2PACKAGE['mmseg'] == name


def test_classes_are_found_in_the_scope_of_the_package(monkeypatch):
    """mmengine enters the scope into configs that inherit from ``acmix_mm::...``."""
    warnings = []
    monkeypatch.setattr(
        mmengine.logging,
        'print_log',
        lambda message, logger=None, level=logging.INFO: (
            warnings.append(message) if level >= logging.WARNING else None
        ),
    )
    registry.register_scope()  # again: it changes nothing
    for parent, name in ((MODELS, 'ACmixResNet'), (OPTIMIZERS, 'SGD')):
        with parent.switch_scope_and_registry('acmix_mm') as found:
            assert (found.scope, found.parent) == ('acmix_mm', parent)
            assert found.get(name) is parent.get(name)
            assert found.get(name).__name__ == name
    assert warnings == []


# Helpers for the code that runs in a new process.
SNAPSHOT = """
import sys
import mmengine.runner
import mmengine._strategy
import mmcv.cnn
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry, root

REGISTRIES = {name: r for name, r in vars(root).items() if isinstance(r, Registry)}


def attributes():
    '''Return the id of every attribute of the imported modules and classes of mmengine and mmcv.'''
    found = {}
    for name, module in list(sys.modules.items()):
        if name.startswith(('mmengine', 'mmcv')):
            for key, value in list(vars(module).items()):
                found[name, key] = id(value)
                if isinstance(value, type) and value.__module__.startswith(('mmengine', 'mmcv')):
                    found.update({(name, key, k): id(v) for k, v in list(vars(value).items())})
    return found


def registered():
    return {(n, key): id(value) for n, r in REGISTRIES.items()
            for key, value in r.module_dict.items()}


def schemes():
    return dict(mmengine.runner.CheckpointLoader._schemes)
"""


def test_import_patches_nothing():
    """Importing acmix_mm adds registered names, and changes nothing else in mmengine and mmcv."""
    run_python(f"""{SNAPSHOT}
before = attributes(), registered(), schemes(), dict(MODULE2PACKAGE)
import acmix_mm
after = attributes(), registered(), schemes(), dict(MODULE2PACKAGE)

changed = {{k for k, value in before[0].items() if after[0].get(k) != value}}
assert len(before[0]) > 1000
assert not changed, changed
assert all(after[1][key] == value for key, value in before[1].items())
added = {{name for _, name in after[1].keys() - before[1].keys()}}
assert {{'ACmixResNet', 'ACmixSAN', 'ACmixPVT', 'ACmixSwin', 'ACmix'}} <= added, added
assert after[2] == before[2]
packages = {{k for k in after[3] if after[3][k] != before[3].get(k)}}
assert 'acmix_mm' in packages and packages <= {{'acmix_mm', 'mmseg'}}, packages
""")


def test_snapshot_sees_patches():
    """The test above is able to fail."""
    run_python(f"""{SNAPSHOT}
from acmix_mm.runtime import patch_mmengine

before = attributes(), schemes()
patch_mmengine()
assert schemes() != before[1]
mmengine._strategy.FSDPStrategy.load_optim_state_dict = print
changed = {{k for k, value in attributes().items() if before[0].get(k) != value}}
assert any(key[-1] == 'load_optim_state_dict' for key in changed), changed
""")
