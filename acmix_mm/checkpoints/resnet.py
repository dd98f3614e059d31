# SPDX-License-Identifier: Apache-2.0
"""Checkpoint formats of ``ACmixResNet``: ours, released ResNet-ACmix, plain ResNets."""

from .formats import Family, Format, Rule, StateDict, rules_of_layer
from .released import SLIDING_WINDOW

_LAYER = r'(layer\d+\.\d+\.conv2\.)'
# Stem, norms, 1x1 convolutions and shortcuts have torchvision's names in all formats but one.
_NETWORK = (
    Rule(r'fc\.(weight|bias)', None, reason='classifier head'),
    Rule(r'((stem|conv1|bn1|layer\d+)\..*)', r'\1'),
)


def _mmpretrain_rules(state_dict: StateDict) -> list[Rule]:
    """Make the rules for mmpretrain's ResNet-C and -D: other indices of some layers."""
    rules = [
        Rule(rf'stem\.{i}\.{part}\.(.*)', rf'stem.{3 * i + j}.\1')
        for i in range(3)
        for j, part in enumerate(('conv', 'bn'))
    ]
    if 'layer2.0.downsample.2.weight' in state_dict:  # ResNet-D
        # Its first shortcut, which has no stride, has no pooling of 1x1 pixel before it.
        rules += [
            Rule(rf'layer1\.0\.downsample\.{i}\.(.*)', rf'layer1.0.downsample.{i + 1}.\1')
            for i in range(2)
        ]
    return [*rules, *_NETWORK]


FAMILY = Family(
    name='ACmixResNet',
    marker=_LAYER + r'qkv\.weight',
    foreign=(
        Format(
            name='released ResNet-ACmix classifier',
            marker=_LAYER + r'dep_conv\.weight',
            rules=(*rules_of_layer(_LAYER, r'\1', SLIDING_WINDOW), *_NETWORK),
        ),
        Format(
            name='plain ResNet-C or -D (mmpretrain)',
            marker=r'stem\.0\.conv\.weight',
            rules=_mmpretrain_rules,
        ),
        Format(
            name='plain ResNet (torchvision)',
            marker=_LAYER + 'weight',
            rules=_NETWORK,
        ),
    ),
)
