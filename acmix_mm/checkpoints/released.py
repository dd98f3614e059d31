"""Names of the released ACmix layers, brought to ours."""

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
    """Rename, in place, what a released layer calls its parameters; for a layer's load hook.

    Args:
        state_dict: Of the layer or of a network that has it; entries in our names stay.
        prefix: Of the layer within it, with the trailing dot.
        names: Of the layer.
    """
    theirs = {prefix + name for name in names} & state_dict.keys()
    released = {name: state_dict.pop(name) for name in sorted(theirs)}
    rules = rules_of_layer(re.escape(prefix), prefix, names)
    state_dict.update(rename(released, rules).state_dict)
