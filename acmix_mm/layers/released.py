"""Names in state dicts of the released code, brought to ours when a layer loads them."""

from collections.abc import Callable, MutableMapping

from torch import Tensor

# Ours <- theirs, and how the tensor changes. The released layers have one pair of fully connected
# layer and convolution; ours are stacked over pairs.
_PATHS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    'shift_conv.fc_weight': ('fc.weight', lambda weight: weight.flatten(1).unsqueeze(0)),
    'shift_conv.fc_bias': ('fc.bias', lambda bias: bias.unsqueeze(0)),
    'shift_conv.kernel': ('dep_conv.weight', lambda kernel: kernel.unsqueeze(0)),
    'mix.alpha': ('rate1', lambda rate: rate.reshape(1)),
    'mix.beta': ('rate2', lambda rate: rate.reshape(1)),
}


def rename_paths(state_dict: MutableMapping[str, Tensor], prefix: str) -> None:
    """Rename, in place, the path parameters of one released layer.

    Args:
        state_dict: Of the layer or of a network that has it; entries already in our names stay.
        prefix: Of the layer within it, with the trailing dot.
    """
    for ours, (theirs, change) in _PATHS.items():
        if prefix + theirs in state_dict:
            state_dict[prefix + ours] = change(state_dict.pop(prefix + theirs))
