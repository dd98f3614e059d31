# SPDX-License-Identifier: Apache-2.0
"""All families of checkpoints."""

from . import pvt, resnet, san, swin
from .formats import Family, Format, StateDict

# To add a family, add its module here.
FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY for module in (resnet, swin, pvt, san)
}


def identify(state_dict: StateDict) -> tuple[Family, Format] | None:
    """Find the family and the format of a state dict.

    Args:
        state_dict: State dict of a backbone or classifier.
            :func:`acmix_mm.checkpoints.unwrap` and :func:`acmix_mm.checkpoints.backbone_part`
            extract it from a checkpoint.

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
