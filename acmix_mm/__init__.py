# SPDX-License-Identifier: Apache-2.0
"""ACmix backbones for mmdetection and mmsegmentation.

Importing this package registers everything that it offers; in a config,
``custom_imports = dict(imports=['acmix_mm'])`` does so. Where mmengine is not installed nothing is
registered, and :mod:`acmix_mm.ops` and :class:`acmix_mm.layers.ACmix` work with torch alone.
"""

from importlib.util import find_spec

from .preflight.libraries import check_dependencies, check_torch
from .version import __version__

__all__ = ['__version__', 'layers', 'ops']

# Check first: the imports below fail without saying what to install.
if find_spec('mmengine') is None:
    check_torch()
else:
    check_dependencies()

from . import layers, ops

if find_spec('mmengine') is not None:
    from . import backbones, hooks, optim, registry
    from .layers import acmix_conv  # noqa: F401  registers dict(type='ACmix')

    registry.register_config_names()
    registry.register_scope()
    __all__ += ['backbones', 'hooks', 'optim']
