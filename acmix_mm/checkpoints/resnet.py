# SPDX-License-Identifier: Apache-2.0
"""Checkpoint formats of ``ACmixResNet``: ours, released ResNet-ACmix, torchvision's ResNet."""

from .formats import Family, Format, Rule, rules_of_layer
from .released import SLIDING_WINDOW

_LAYER = r'(layer\d+\.\d+\.conv2\.)'
# Stem, norms, 1x1 convolutions and shortcuts have the same names, torchvision's, in all formats.
_NETWORK = (
    Rule(r'fc\.(weight|bias)', None, reason='classifier head'),
    Rule(r'((stem|conv1|bn1|layer\d+)\..*)', r'\1'),
)

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
            name='plain ResNet (torchvision)',
            marker=_LAYER + 'weight',
            rules=_NETWORK,
        ),
    ),
)
