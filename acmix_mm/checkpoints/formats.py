# SPDX-License-Identifier: Apache-2.0
"""Recognise the format of a checkpoint, and convert it to ours.

The checkpoints that a backbone loads form a :class:`Family`: our own format and the foreign ones
that can be converted to it. A foreign :class:`Format` is a table of :class:`Rule`, of which the
first that matches an entry is applied. A :class:`Conversion` lists what happened to every entry.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

StateDict = Mapping[str, Tensor]
Transform = Callable[[Tensor], Tensor]
# For one layer: foreign name -> our name, and the transform of the tensor (None keeps it as it is).
LayerNames = Mapping[str, tuple[str, Transform | None]]


@dataclass(frozen=True)
class Rule:
    r"""How to convert the entries whose whole name matches a pattern.

    Attributes:
        pattern: Regular expression that must match the whole name of an entry.
        target: Our name for the entry, which may refer to groups of the pattern (``\1``). None
            drops the entry.
        transform: Function from the foreign tensor to ours, or None to keep the tensor as it is.
            Default: None.
        reason: Reason for dropping the entry, used in messages. Default: ``''``.
    """

    pattern: str
    target: str | None
    transform: Transform | None = None
    reason: str = ''


@dataclass
class Conversion:
    """A converted state dict, and what happened to each entry of the foreign one.

    Attributes:
        state_dict: The state dict with our names.
        renamed: Our names by foreign names, for all entries that were kept.
        dropped: Reasons by foreign names, for all entries that our format does not need.
        unknown: Foreign names that no rule matches. They are not in ``state_dict``.
    """

    state_dict: dict[str, Tensor] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Format:
    """One of the formats in which checkpoints of a family are written.

    Attributes:
        name: Name for messages, such as ``'plain Swin (Microsoft)'``.
        marker: Regular expression that identifies the format: it matches the whole name of an entry
            of this format, and no name in other families or in later formats of the same family.
        rules: Rules that convert the format, or a function that makes them for a given state dict.
    """

    name: str
    marker: str
    rules: Sequence[Rule] | Callable[[StateDict], Sequence[Rule]]

    def matches(self, state_dict: StateDict) -> bool:
        """Return whether a state dict is written in this format."""
        marker = re.compile(self.marker)
        return any(marker.fullmatch(name) for name in state_dict)

    def convert(self, state_dict: StateDict) -> Conversion:
        """Convert a state dict of this format to ours.

        Raises:
            ValueError: The shape of an entry is not one of this format.
        """
        return rename(state_dict, self.rules(state_dict) if callable(self.rules) else self.rules)


@dataclass(frozen=True)
class Family:
    """All formats that one backbone loads.

    Attributes:
        name: Name of the backbone's class.
        marker: Regular expression that identifies our own format, see :class:`Format`.
        foreign: The other formats, in the order in which they are tried.
        resize: Functions ``(tensor, shape) -> tensor`` by the ends of names. They resize entries
            whose shape differs from that of the network. Default: empty.
    """

    name: str
    marker: str
    foreign: tuple[Format, ...]
    resize: Mapping[str, Callable[[Tensor, torch.Size], Tensor]] = field(default_factory=dict)

    @property
    def ours(self) -> Format:
        """Our own format, which is not changed."""
        return Format(f'{self.name} of acmix-mm', self.marker, (Rule('(.*)', r'\1'),))

    @property
    def formats(self) -> tuple[Format, ...]:
        """All formats, in the order in which they are tried."""
        return (self.ours, *self.foreign)

    def identify(self, state_dict: StateDict) -> Format | None:
        """Return the first format that matches a state dict, or None."""
        return next((fmt for fmt in self.formats if fmt.matches(state_dict)), None)


def rename(state_dict: StateDict, rules: Sequence[Rule]) -> Conversion:
    r"""Apply to every entry of a state dict the first rule that matches its name.

    Entries that get the same new name are concatenated along their first axis, in the order of
    their rules. This joins separate q, k and v into one projection.

    Args:
        state_dict: State dict to convert. It is not changed.
        rules: Rules in the order in which they are tried.

    Returns:
        Conversion: The result, with entries in the order of ``state_dict``.

    Raises:
        ValueError: The shape of an entry does not fit its rule. The message names the entry.

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
                if rule.transform:
                    with _shapes_named(name, tensor):
                        tensor = rule.transform(tensor)
                pieces.setdefault(target, {})[order] = tensor
            break
        else:
            conversion.unknown.append(name)
    for target, by_order in pieces.items():
        tensors = [by_order[order] for order in sorted(by_order)]
        with _shapes_named(f'the parts of {target}', *tensors):
            conversion.state_dict[target] = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
    return conversion


@contextmanager
def _shapes_named(name: str, *tensors: Tensor) -> Iterator[None]:
    """Name an entry and its shape in the error of a conversion that does not fit them."""
    try:
        yield
    except (RuntimeError, LookupError, TypeError, ValueError) as error:
        shapes = ' and '.join(str(tuple(tensor.shape)) for tensor in tensors)
        reason = str(error).split('\n', 1)[0]
        raise ValueError(f'{name}, of shape {shapes}, does not fit the format: {reason}') from error


def rules_of_layer(pattern: str, target: str, names: LayerNames) -> list[Rule]:
    r"""Make the rules for a layer that occurs in many places of a network.

    Args:
        pattern: Regular expression for the foreign prefix of the layer's entries, with the trailing
            dot.
        target: Our prefix of the layer's entries, which may refer to groups of ``pattern``.
        names: Our names and transforms of the layer's entries by their foreign names.

    Examples:
        >>> rules_of_layer(r'layers\.(\d+)\.', r'stages.\1.', {'fc.weight': ('weight', None)})[0]
        Rule(pattern='layers\\.(\\d+)\\.fc\\.weight', target='stages.\\1.weight', ...)
    """
    return [
        Rule(pattern + re.escape(theirs), target + ours, transform)
        for theirs, (ours, transform) in names.items()
    ]
