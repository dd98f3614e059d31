# SPDX-License-Identifier: Apache-2.0
"""Checkpoint formats: pure functions from state dict to state dict, and reading and writing files.

Each backbone family has a module that defines its ``FAMILY``: how to recognise our own format, and
a table of rules for each foreign format. A backbone supports them with one line at the end of its
``__init__``, ``register_checkpoint_conversion(self, 'ACmixSwin', warm_start)``, see
:mod:`acmix_mm.backbones.loading`.
"""

from . import pvt, resnet, san, swin
from .formats import Conversion, Family, Format, Rule, StateDict, rename
from .unwrap import backbone_part, unwrap

# To add a family, add its module here.
FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY for module in (resnet, swin, pvt, san)
}


def identify(state_dict: StateDict) -> tuple[Family, Format] | None:
    """Find the family and the format of a state dict.

    Args:
        state_dict: State dict of a backbone or classifier. :func:`unwrap` and
            :func:`backbone_part` extract it from a checkpoint.

    Returns:
        tuple[Family, Format] | None: The family and the format, or None if the format is unknown.

    Examples:
        >>> import torch
        >>> identify({'layer1.0.conv2.weight': torch.empty(0)})[1].name
        'plain ResNet (torchvision)'
    """
    for family in FAMILIES.values():
        fmt = family.identify(state_dict)
        if fmt is not None:
            return family, fmt
    return None


__all__ = [
    'FAMILIES',
    'Conversion',
    'Family',
    'Format',
    'Rule',
    'StateDict',
    'backbone_part',
    'identify',
    'rename',
    'unwrap',
]
