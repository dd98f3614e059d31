# SPDX-License-Identifier: Apache-2.0
"""What mmengine is told when acmix-mm is imported: its registries and the names of its configs.

The registries are mmengine's root registries. A class registered there is found, by its plain name,
from the registries of mmdet, mmseg and mmpretrain alike.
"""

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS

from .preflight.libraries import MMSEG, installed_distributions

__all__ = ['MODELS', 'OPTIM_WRAPPER_CONSTRUCTORS', 'register_config_names']


def register_config_names() -> None:
    """Let mmengine find the configs of ``acmix_mm::...`` and, with the OneDL fork, ``mmseg::...``.

    mmengine has a fixed table of packages and the distributions that install them. The fork's
    distribution of mmseg has another name; mmengine finds it under the name of the module.
    """
    MODULE2PACKAGE['acmix_mm'] = 'acmix_mm'
    if 'onedl-mmsegmentation' in installed_distributions(MMSEG):
        MODULE2PACKAGE['mmseg'] = 'mmseg'
