# SPDX-License-Identifier: Apache-2.0
"""Map parameter names of the released code to ours."""

import re
from collections.abc import MutableMapping

from torch import Tensor

from .formats import LayerNames, rename, rules_of_layer

# The released layers have one pair of fully connected layer and convolution. Ours can have several,
# stacked along a first axis that the transforms add.
PATHS: LayerNames = {
    'fc.weight': ('shift_conv.fc_weight', lambda weight: weight.flatten(1).unsqueeze(0)),
    'fc.bias': ('shift_conv.fc_bias', lambda bias: bias.unsqueeze(0)),
    'dep_conv.weight': ('shift_conv.kernel', None),
    'rate1': ('mix.alpha', lambda rate: rate.reshape(1)),
    'rate2': ('mix.beta', lambda rate: rate.reshape(1)),
}
# In ResNet's layer, conv1, conv2 and conv3 project to q, k and v; conv_p gives the position map.
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
    """Rename the parameters of a released layer to ours; for the load hook of a layer.

    Args:
        state_dict: State dict of the layer or of a network that contains it. It is changed in
            place. Entries that already have our names are kept.
        prefix: Prefix of the layer's entries, with the trailing dot.
        names: Our names and transforms by the released names.
    """
    theirs = {prefix + name for name in names} & state_dict.keys()
    released = {name: state_dict.pop(name) for name in sorted(theirs)}
    rules = rules_of_layer(re.escape(prefix), prefix, names)
    state_dict.update(rename(released, rules).state_dict)
