# SPDX-License-Identifier: Apache-2.0
"""Maps parameter names of the released code to ours."""

import re
from collections.abc import MutableMapping

from torch import Tensor

from .formats import LayerNames, rename, rules_of_layer

# The released layers have one pair of fully connected layer and convolution; ours stack the pairs.
PATHS: LayerNames = {
    'fc.weight': ('shift_conv.fc_weight', lambda weight: weight.flatten(1).unsqueeze(0)),
    'fc.bias': ('shift_conv.fc_bias', lambda bias: bias.unsqueeze(0)),
    'dep_conv.weight': ('shift_conv.kernel', None),
    'rate1': ('mix.alpha', lambda rate: rate.reshape(1)),
    'rate2': ('mix.beta', lambda rate: rate.reshape(1)),
}
# ResNet's layer: conv1, conv2, conv3 project to q, k, v; conv_p is the position map.
SLIDING_WINDOW: LayerNames = {
    **PATHS,
    **{
        f'{theirs}.{kind}': (f'{ours}.{kind}', None)
        for theirs, ours in dict(conv1='qkv', conv2='qkv', conv3='qkv', conv_p='position').items()
        for kind in ('weight', 'bias')
    },
}


def accept_released_names(
    state_dict: MutableMapping[str, Tensor], prefix: str, names: LayerNames
) -> None:
    """Rename, in place, parameters of a released layer to ours; for a layer's load hook.

    Args:
        state_dict: State dict of the layer or of a network that contains it. Entries that have our
            names are not changed.
        prefix: Prefix of the layer's entries, with the trailing dot.
        names: Our names by the released names.
    """
    theirs = {prefix + name for name in names} & state_dict.keys()
    released = {name: state_dict.pop(name) for name in sorted(theirs)}
    rules = rules_of_layer(re.escape(prefix), prefix, names)
    state_dict.update(rename(released, rules).state_dict)
