# SPDX-License-Identifier: Apache-2.0
"""How one format of checkpoints is told from others, and renamed to ours.

A backbone's checkpoints form a :class:`Family`: our own format and the foreign ones that can be
renamed to it. A foreign :class:`Format` is a table of :class:`Rule`, first fit wins; nothing that a
checkpoint holds is lost without being listed in the :class:`Conversion`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

StateDict = Mapping[str, Tensor]
Transform = Callable[[Tensor], Tensor]
# Of one layer: their name -> our name, and how the tensor changes (None: not at all).
LayerNames = Mapping[str, tuple[str, Transform | None]]


@dataclass(frozen=True)
class Rule:
    r"""How to convert the entries whose whole name matches a pattern.

    Args:
        pattern: Regular expression for the name of an entry.
        target: Our name, which may use groups (``\1``); None drops the entry.
        transform: Function from the foreign tensor to ours.
        reason: Why an entry is dropped, for messages.
    """

    pattern: str
    target: str | None
    transform: Transform | None = None
    reason: str = ''


@dataclass
class Conversion:
    """A renamed state dict, and what happened to each entry of the old one.

    Attributes:
        state_dict: In our names.
        renamed: Their name -> our name, for all that was kept.
        dropped: Their name -> why it has no place in our format.
        unknown: Their names that no rule knows; they are not in ``state_dict``.
    """

    state_dict: dict[str, Tensor] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Format:
    """One way in which checkpoints of a family are written.

    Args:
        name: For messages, such as ``'plain Swin (Microsoft)'``.
        marker: Regular expression for a whole name that only this format has among the formats
            after it in its family, and no other family has.
        rules: The table, or a function that makes it for a given state dict.
    """

    name: str
    marker: str
    rules: Sequence[Rule] | Callable[[StateDict], Sequence[Rule]]

    def matches(self, state_dict: StateDict) -> bool:
        """Whether a state dict is written in this format."""
        marker = re.compile(self.marker)
        return any(marker.fullmatch(name) for name in state_dict)

    def convert(self, state_dict: StateDict) -> Conversion:
        """Rename a state dict of this format to ours."""
        return rename(state_dict, self.rules(state_dict) if callable(self.rules) else self.rules)


@dataclass(frozen=True)
class Family:
    """Every format that one backbone loads.

    Args:
        name: Name of the backbone's class.
        marker: Marker of our own format, see :class:`Format`.
        foreign: The other formats.
        resize: By the end of an entry's name: how an entry of another shape than the network's is
            brought to that shape, ``(tensor, shape) -> tensor``.
    """

    name: str
    marker: str
    foreign: tuple[Format, ...]
    resize: Mapping[str, Callable[[Tensor, torch.Size], Tensor]] = field(default_factory=dict)

    @property
    def ours(self) -> Format:
        """Our own format, which is kept as it is."""
        return Format(f'{self.name} of acmix-mm', self.marker, (Rule('(.*)', r'\1'),))

    @property
    def formats(self) -> tuple[Format, ...]:
        """All formats; the first one that matches is a state dict's."""
        return (self.ours, *self.foreign)

    def identify(self, state_dict: StateDict) -> Format | None:
        """The format in which a state dict is written, or None."""
        return next((fmt for fmt in self.formats if fmt.matches(state_dict)), None)


def rename(state_dict: StateDict, rules: Sequence[Rule]) -> Conversion:
    r"""Apply the first rule that fits to every entry.

    Entries that get the same new name are concatenated along their first axis, in the order of the
    rules that renamed them: so separate q, k and v become one projection.

    Args:
        state_dict: Left as it is.
        rules: Tried in order.

    Returns:
        Conversion: In the order of the old state dict.

    Examples:
        >>> rules = [Rule(r'fc(\d)\.w', r'linear\1.weight'), Rule(r'head\..*', None, reason='head')]
        >>> conversion = rename({'fc1.w': torch.ones(1), 'head.w': torch.ones(1)}, rules)
        >>> conversion.renamed, conversion.dropped
        ({'fc1.w': 'linear1.weight'}, {'head.w': 'head'})
    """
    conversion = Conversion()
    pieces: dict[str, dict[int, Tensor]] = {}
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    for name, tensor in state_dict.items():
        for order, (pattern, rule) in enumerate(compiled):
            match = pattern.fullmatch(name)
            if match is None:
                continue
            if rule.target is None:
                conversion.dropped[name] = rule.reason
            else:
                target = conversion.renamed[name] = match.expand(rule.target)
                tensor = rule.transform(tensor) if rule.transform else tensor
                pieces.setdefault(target, {})[order] = tensor
            break
        else:
            conversion.unknown.append(name)
    for target, of_rule in pieces.items():
        tensors = [of_rule[order] for order in sorted(of_rule)]
        conversion.state_dict[target] = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
    return conversion


def rules_of_layer(pattern: str, target: str, names: LayerNames) -> list[Rule]:
    r"""Rules for a layer that occurs in many places of a network.

    Args:
        pattern: Regular expression for the foreign prefix of its entries, with the trailing dot.
        target: Our prefix of the layer's entries, which may use the groups of ``pattern``.
        names: Our names of the layer's entries by the foreign names.

    Examples:
        >>> rules_of_layer(r'layers\.(\d+)\.', r'stages.\1.', {'fc.weight': ('weight', None)})[0]
        Rule(pattern='layers\\.(\\d+)\\.fc\\.weight', target='stages.\\1.weight', ...)
    """
    return [
        Rule(pattern + re.escape(theirs), target + ours, transform)
        for theirs, (ours, transform) in names.items()
    ]
