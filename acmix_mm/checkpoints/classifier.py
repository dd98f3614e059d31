# SPDX-License-Identifier: Apache-2.0
"""Classifiers of other code, under the names that their parts have in mmpretrain."""

import re
from collections.abc import Mapping
from typing import Any

from .families import identify
from .formats import StateDict
from .unwrap import unwrap

# The linear layer of torchvision and SAN, of Swin and PVT, and of mmpretrain.
_HEAD = re.compile(r'(?:fc|head|head\.fc)\.(weight|bias)')


def head_names(state_dict: StateDict) -> dict[str, str]:
    """Return the names in mmpretrain of the entries of a classifier's linear layer.

    Args:
        state_dict: State dict of a whole classifier.

    Returns:
        dict[str, str]: ``head.fc.weight`` and ``head.fc.bias`` by the names that they have. Empty
        if the classifier has no such layer, or feeds it a class token instead of the mean of the
        last map, as PVT does.

    Examples:
        >>> head_names({'conv1.weight': 1, 'fc.weight': 2, 'fc.bias': 3})
        {'fc.weight': 'head.fc.weight', 'fc.bias': 'head.fc.bias'}
    """
    if 'cls_token' in state_dict:
        return {}
    matches = {name: _HEAD.fullmatch(name) for name in state_dict}
    return {name: f'head.fc.{match[1]}' for name, match in matches.items() if match}


def of_whole_model(checkpoint: Mapping) -> Mapping[str, Any]:
    """Return the state dict in a checkpoint, for a model that has a backbone and a head.

    mmengine looks for it in the entry ``'state_dict'``. If the checkpoint is a classifier of other
    code, such as a released one, the entries of its linear layer get their names in mmpretrain, and
    the others get the prefix ``backbone.``. The backbone converts them when it loads them.

    Args:
        checkpoint: Content of a checkpoint file.

    Examples:
        >>> import torch
        >>> weight = torch.ones(1)
        >>> [*of_whole_model({'model': {'layer1.0.conv2.weight': weight, 'fc.weight': weight}})]
        ['backbone.layer1.0.conv2.weight', 'head.fc.weight']
    """
    try:
        state_dict = unwrap(checkpoint)
    except ValueError:
        state_dict = {}
    head = head_names(state_dict)
    if not head or identify(state_dict) is None:
        return checkpoint.get('state_dict', checkpoint)
    return {head.get(name, f'backbone.{name}'): tensor for name, tensor in state_dict.items()}
