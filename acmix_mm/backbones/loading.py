# SPDX-License-Identifier: Apache-2.0
"""Load hook that converts checkpoints of other formats.

A backbone ends its ``__init__`` with
``register_checkpoint_conversion(self, 'ACmixSwin', warm_start)``, where the name is that of its
family in :data:`acmix_mm.checkpoints.FAMILIES`. The hook runs in ``load_state_dict``, so it serves
``init_cfg=dict(type='Pretrained', ...)``, ``load_from``, resuming and plain torch alike, for a
backbone alone and for one within a detector.
"""

import logging
import re
from collections.abc import Iterator, Mapping, MutableMapping
from copy import deepcopy
from functools import partial
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from ..checkpoints import FAMILIES, Family, Format, backbone_part, identify, unwrap
from ..layers import PathMix, ShiftConv
from ..ops.torch_compat import register_load_state_dict_pre_hook

_WARM = 'ACmix layers set to alpha = 1, beta = 0, so that they compute what the plain ones did'
_OTHER_SHAPE = 'of another shape, not loaded'


def register_checkpoint_conversion(
    backbone: nn.Module, family: str, warm_start: bool = True
) -> None:
    """Register a hook that converts checkpoints while a backbone loads them.

    The hook renames entries of known formats to ours, drops a classifier head, interpolates tables
    that depend on a size, and logs in one message what was and what was not loaded. It does not
    change a checkpoint in our own format.

    A checkpoint of another network is an error for a backbone alone, also without ``strict``, which
    torch does not tell its hooks. Within a detector it is a warning: the backbone keeps the weights
    that it has, and torch loads neck and heads and reports the backbone's entries as missing.

    Args:
        backbone: Backbone with all its layers.
        family: A key of :data:`acmix_mm.checkpoints.FAMILIES`.
        warm_start: Whether ACmix layers are set to alpha = 1, beta = 0 if the checkpoint has their
            projections but neither their convolution path nor their path weights, as that of a
            plain network. The network then computes what the plain one did. Default: True.

    Raises:
        KeyError: ``family`` is unknown.

    Examples:
        >>> register_checkpoint_conversion(nn.Identity(), 'ACmixResNet')
    """
    if family not in FAMILIES:
        raise KeyError(f'no family of checkpoints {family!r}, choose one of {list(FAMILIES)}')
    # A partial of a module-level function, so that models can be pickled.
    hook = partial(_convert, family=family, warm_start=warm_start)
    register_load_state_dict_pre_hook(backbone, hook)


def _convert(
    backbone: nn.Module,
    state_dict: MutableMapping[str, Any],
    prefix: str,
    local_metadata: Mapping[str, Any],
    *_: Any,
    family: str,
    warm_start: bool,
) -> None:
    """Convert, in place, the entries under ``prefix`` to the names and shapes of the backbone.

    Raises:
        ValueError: The checkpoint cannot be converted, and the backbone is loaded alone.
    """
    given = [name for name in state_dict if name.startswith(prefix)]
    if not given:
        return
    entries = {name.removeprefix(prefix): state_dict[name] for name in given}
    outside: list[str] = []
    if not prefix:  # what a file holds, as it is
        entries, outside = backbone_part(unwrap(entries))
    # Old files have no num_batches_tracked; BatchNorm itself fills it in.
    expected = {
        name: tensor
        for name, tensor in backbone.state_dict().items()
        if not name.endswith('num_batches_tracked')
    }
    try:
        fmt = _identify(FAMILIES[family], entries, expected)
        conversion = fmt.convert(entries)
    except ValueError as error:
        if not prefix:
            raise
        for name in given:
            del state_dict[name]
        reason = str(error).removesuffix('.')
        print_log(
            f'{reason}. {type(backbone).__name__} keeps the weights that it has.',
            logger='current',
            level=logging.WARNING,
        )
        return
    # Unknown entries are passed on, so that strict loading reports them.
    loaded = conversion.state_dict | {name: entries[name] for name in conversion.unknown}
    changes = {
        **_by_reason(conversion.dropped),
        'dropped, not of the backbone': outside,
        'interpolated': _resize(FAMILIES[family], loaded, expected),
    }
    misfits = _misfits(loaded, expected)
    fitting = len(expected.keys() & loaded.keys()) - len(misfits[_OTHER_SHAPE])
    if warm_start:
        assign = local_metadata.get('assign_to_params_buffers', False)
        changes[_WARM] = _warm_start(backbone, loaded, expected, assign)

    for name in given:
        del state_dict[name]
    state_dict.update({prefix + name: tensor for name, tensor in loaded.items()})
    if fmt != FAMILIES[family].ours or any(changes.values()):
        title = (
            f'{type(backbone).__name__}: loaded {fitting} of {len(expected)} entries '
            f'from a checkpoint of {fmt.name}'
        )
        _report(title, changes, _misfits(loaded, expected))


def _identify(family: Family, entries: dict[str, Tensor], expected: dict[str, Tensor]) -> Format:
    fmt = family.identify(entries)
    if fmt is not None:
        return fmt
    other = identify(entries)
    unknown = [n for n in entries.keys() - expected if not n.endswith('num_batches_tracked')]
    if other is None and not unknown:
        return family.ours  # a part of it: torch reports what is missing
    raise ValueError(
        f'{family.name} cannot load this checkpoint: '
        f'its format is {other[1].name if other else "unknown"} '
        f'({len(entries)} entries, such as {next(iter(entries))!r}). '
        f'Known: {", ".join(f.name for f in family.formats)}.'
    )


def _resize(family: Family, loaded: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Interpolate, in place, tables that depend on a size. Return their names and shapes."""
    resized = []
    for name, tensor in loaded.items():
        resize = next((f for end, f in family.resize.items() if name.endswith(end)), None)
        if resize and name in expected and tensor.shape != expected[name].shape:
            loaded[name] = resize(tensor, expected[name].shape)
            resized.append(f'{name} {tuple(tensor.shape)} to {tuple(loaded[name].shape)}')
    return resized


def _warm_start(
    backbone: nn.Module, loaded: dict[str, Tensor], expected: dict[str, Tensor], assign: bool
) -> list[str]:
    """Add, in place, the paths that a plain network lacks. Return the names of the layers."""
    layers = []
    for layer, mix in _acmix_layers(backbone):
        missing = {n for n in expected if n.startswith(layer) and n not in loaded}
        paths = {n for n in expected if n.startswith((f'{layer}mix.', f'{layer}shift_conv.'))}
        if not paths or missing != paths or not isinstance(mix.alpha, nn.Parameter):
            continue
        like = next(tensor for name, tensor in loaded.items() if name.startswith(layer))
        for path in ('mix.', 'shift_conv.'):
            module: Any = backbone.get_submodule(f'{layer}{path}'.removesuffix('.'))
            start = _start(module, like) if assign else deepcopy(module)
            loaded.update(start.state_dict(prefix=layer + path))
        loaded[f'{layer}mix.alpha'].fill_(1)
        if isinstance(mix.beta, nn.Parameter):
            loaded[f'{layer}mix.beta'].zero_()
        layers.append(layer.removesuffix('.'))
    return layers


def _start(module: PathMix | ShiftConv, like: Tensor) -> PathMix | ShiftConv:
    """Return a copy with the device and dtype of a tensor of the checkpoint.

    ``load_state_dict(..., assign=True)`` makes the tensors of the checkpoint those of the network.
    A path on the meta device has no values to copy, so it is initialized.
    """
    module = deepcopy(module)
    if any(parameter.is_meta for parameter in module.parameters()):
        module.to_empty(device=like.device).reset_parameters()
    return module.to(like)


def _acmix_layers(backbone: nn.Module) -> Iterator[tuple[str, PathMix]]:
    for name, module in backbone.named_modules():
        if isinstance(module, PathMix):
            yield name.removesuffix('mix'), module


def _by_reason(dropped: dict[str, str]) -> dict[str, list[str]]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in dropped.items():
        by_reason.setdefault(f'dropped, {reason}', []).append(name)
    return by_reason


def _misfits(loaded: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, list[str]]:
    return {
        'not in the checkpoint, left unchanged': [n for n in expected if n not in loaded],
        'in the checkpoint, but not in the model': [
            n for n in loaded if n not in expected and not n.endswith('num_batches_tracked')
        ],
        _OTHER_SHAPE: [
            f'{name} {tuple(loaded[name].shape)}, here {tuple(tensor.shape)}'
            for name, tensor in expected.items()
            if name in loaded and loaded[name].shape != tensor.shape
        ],
    }


def _report(title: str, changes: dict[str, list[str]], misfits: dict[str, list[str]]) -> None:
    """Log, in one message, what was and what was not loaded."""
    lines = [f'  {what}: {_names(names)}' for what, names in (changes | misfits).items() if names]
    level = logging.WARNING if any(misfits.values()) else logging.INFO
    print_log('\n'.join([title, *lines]), logger='current', level=level)


def _names(names: list[str]) -> str:
    """Count and list names; those that differ in an index become one, ``stages.*.norm.weight``."""
    alike = dict.fromkeys(re.sub(r'(?<=\.)\d+(?=\.)|(?<=^layer)\d+', '*', name) for name in names)
    return f'{len(names)} ({", ".join(alike if len(names) > 4 else names)})'
