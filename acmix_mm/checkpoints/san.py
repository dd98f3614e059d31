# SPDX-License-Identifier: Apache-2.0
"""Checkpoint formats of ``ACmixSAN``: ours, plain patch-wise SAN."""

from .formats import Family, Format, Rule, StateDict

_BLOCK, _OURS = r'layer(\d+)\.(\d+)\.', r'stages.\1.blocks.\2.'
_RULES = (
    Rule(r'conv_in\.(.*)', r'stem.conv.\1'),
    Rule(r'bn_in\.(.*)', r'stem.bn.\1'),
    Rule(r'conv(\d+)\.(.*)', r'stages.\1.conv.\2'),
    Rule(r'bn(\d+)\.(.*)', r'stages.\1.norm.\2'),
    Rule(_BLOCK + r'bn(\d)\.(.*)', _OURS + r'norm\3.\4'),
    Rule(_BLOCK + r'sam\.conv1\.(.*)', _OURS + r'attn.qkv.\3'),
    Rule(_BLOCK + r'sam\.conv2\.(.*)', _OURS + r'attn.qkv.\3'),
    Rule(_BLOCK + r'sam\.conv3\.(.*)', _OURS + r'attn.qkv.\3'),
    Rule(_BLOCK + r'sam\.conv_w\.(.*)', _OURS + r'attn.mlp.\3'),
    Rule(_BLOCK + r'(conv\..*)', _OURS + r'\3'),
    Rule(r'fc\..*', None, reason='classifier head'),
)


def _rules(state_dict: StateDict) -> tuple[Rule, ...]:
    if any('.sam.conv_p.' in name for name in state_dict):
        raise ValueError(
            'this is a checkpoint of a pair-wise SAN, but ACmixSAN is patch-wise: use a checkpoint '
            'of a patch-wise SAN (sa_type 1)'
        )
    return _RULES


FAMILY = Family(
    name='ACmixSAN',
    marker=r'stages\.\d+\.blocks\.\d+\.attn\.mlp\.0\.weight',
    foreign=(
        Format(
            name='plain SAN, patch-wise',
            marker=_BLOCK + r'sam\.conv_w\.0\.weight',
            rules=_rules,
        ),
    ),
)
