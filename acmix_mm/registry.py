# SPDX-License-Identifier: Apache-2.0
"""What mmengine is told when acmix-mm is imported: its registries, scope and names of configs.

The registries are mmengine's root registries. A class registered there is found, by its plain name,
from the registries of mmdet, mmseg and mmpretrain alike.
"""

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, Registry, root

from .preflight.libraries import MMSEG, installed_distributions

__all__ = ['MODELS', 'OPTIM_WRAPPER_CONSTRUCTORS', 'register_config_names', 'register_scope']


def register_config_names() -> None:
    """Let mmengine find the configs of ``acmix_mm::...`` and, with the OneDL fork, ``mmseg::...``.

    mmengine has a fixed table of packages and the distributions that install them. The fork's
    distribution of mmseg has another name; mmengine finds it under the name of the module.
    """
    MODULE2PACKAGE['acmix_mm'] = 'acmix_mm'
    if 'onedl-mmsegmentation' in installed_distributions(MMSEG):
        MODULE2PACKAGE['mmseg'] = 'mmseg'


def register_scope() -> None:
    """Let mmengine find classes in the scope ``acmix_mm``: its own, and those of this package.

    mmengine enters this scope into the outermost dicts with a ``type`` of a config that inherits
    from ``acmix_mm::...``, unless they come from a config of another library. In a scope without
    registries it would look elsewhere, and warn.
    """
    for registry in vars(root).values():
        if isinstance(registry, Registry) and 'acmix_mm' not in registry.children:
            Registry(registry.name, parent=registry, scope='acmix_mm', locations=['acmix_mm'])
