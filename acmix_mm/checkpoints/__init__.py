# SPDX-License-Identifier: Apache-2.0
"""Checkpoint formats: pure functions from state dict to state dict, and the files they lie in.

Each family has a module with its ``FAMILY``: how our own format is recognised, and a table of rules
for each foreign one. A backbone takes them all with one line at the end of its ``__init__``,
``register_checkpoint_conversion(self, 'ACmixSwin', warm_start)``, see
:mod:`acmix_mm.backbones.loading`.
"""

from . import pvt, resnet, san, swin
from .formats import Conversion, Family, Format, Rule, StateDict, rename
from .unwrap import backbone_part, unwrap

# A new family is one more module here.
FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY for module in (resnet, swin, pvt, san)
}


def identify(state_dict: StateDict) -> tuple[Family, Format] | None:
    """Tell in which format of which family a state dict is written.

    Args:
        state_dict: State dict of a backbone or classifier, see :func:`unwrap` and
            :func:`backbone_part`.

    Returns:
        tuple | None: The family and the format, or None if it is none that we know.

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
