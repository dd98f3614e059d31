"""Every useful checkpoint loads: what a backbone's load hook does with one.

A backbone ends its ``__init__`` with ``accept_checkpoints(self, 'ACmixSwin', warm_start)``, where
the name is that of its family in :data:`acmix_mm.checkpoints.FAMILIES`. Nothing else is needed: the
hook runs in ``load_state_dict``, so it serves ``init_cfg=dict(type='Pretrained', ...)``,
``load_from``, resuming and plain torch alike, in a backbone alone and in one within a detector.
"""

import logging
import re
from collections.abc import Iterator, MutableMapping
from functools import partial
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from ..checkpoints import FAMILIES, Family, Format, backbone_part, identify, unwrap
from ..checkpoints.files import read_checkpoint
from ..layers import PathMix


@CheckpointLoader.register_scheme(r'.*\.safetensors$', force=True)
def load_from_safetensors(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Let mmengine read a local safetensors file wherever it takes a checkpoint.

    Args:
        filename: Of the file.
        map_location: A device.
    """
    checkpoint = read_checkpoint(filename)
    if map_location is not None:
        state_dict = checkpoint['state_dict']
        checkpoint['state_dict'] = {k: v.to(map_location) for k, v in state_dict.items()}
    return checkpoint


_WARM = 'ACmix layers started at alpha = 1, beta = 0, to compute what the plain ones did'
_OTHER_SHAPE = 'of another shape, not loaded'


def accept_checkpoints(backbone: nn.Module, family: str, warm_start: bool = True) -> None:
    """Let a backbone load every format of its family.

    While loading, entries are renamed to ours, a classifier head is dropped, tables that depend on
    a size are interpolated, and one log message says what was and what was not loaded. A checkpoint
    in our own format passes through untouched.

    Args:
        backbone: With all its layers in place.
        family: A key of :data:`acmix_mm.checkpoints.FAMILIES`.
        warm_start: Start ACmix layers of which a checkpoint has the projections but neither the
            convolution path nor the path weights (a plain network's) at alpha = 1, beta = 0: the
            network then computes what the plain one did, and beta learns from there.

    Raises:
        KeyError: There is no such family.

    Examples:
        >>> accept_checkpoints(nn.Identity(), 'ACmixResNet')
    """
    if family not in FAMILIES:
        raise KeyError(f'no family of checkpoints {family!r}, choose one of {list(FAMILIES)}')
    # A partial of a module-level function, so that models can be pickled.
    hook = partial(_accept, family=family, warm_start=warm_start)
    backbone.register_load_state_dict_pre_hook(hook)


def _accept(
    backbone: nn.Module,
    state_dict: MutableMapping[str, Any],
    prefix: str,
    *_: Any,
    family: str,
    warm_start: bool,
) -> None:
    """Bring, in place, the entries under ``prefix`` to the names and shapes of the backbone."""
    given = [name for name in state_dict if name.startswith(prefix)]
    if not given:
        return
    entries = {name.removeprefix(prefix): state_dict[name] for name in given}
    outside: list[str] = []
    if not prefix:  # what a file holds, as it is
        entries, outside = backbone_part(unwrap(entries))
    # BatchNorm itself fills in the counts of old files, which had none.
    expected = {
        name: tensor
        for name, tensor in backbone.state_dict().items()
        if not name.endswith('num_batches_tracked')
    }
    fmt = _identify(FAMILIES[family], entries, expected)
    conversion = fmt.convert(entries)
    # Unknown entries go on, so that strict loading complains about them.
    loaded = conversion.state_dict | {name: entries[name] for name in conversion.unknown}
    changes = {
        **_by_reason(conversion.dropped),
        'dropped, not of the backbone': outside,
        'interpolated': _resize(FAMILIES[family], loaded, expected),
    }
    misfits = _misfits(loaded, expected)
    fitting = len(expected.keys() & loaded.keys()) - len(misfits[_OTHER_SHAPE])
    if warm_start:
        changes[_WARM] = _warm_start(backbone, loaded, expected)

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
    if entries.keys() & expected.keys():  # a part of one of ours: torch reports what is missing
        return family.ours
    other = identify(entries)
    raise ValueError(
        f'{family.name} cannot load this checkpoint: '
        + (f'it is a {other[1].name}' if other else 'its format is unknown')
        + f' ({len(entries)} entries, such as {next(iter(entries))!r}). '
        f'Known: {", ".join(f.name for f in family.formats)}.'
    )


def _resize(family: Family, loaded: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Interpolate in place what depends on a size. Returns where, with old and new shape."""
    resized = []
    for name, tensor in loaded.items():
        resize = next((f for end, f in family.resize.items() if name.endswith(end)), None)
        if resize and name in expected and tensor.shape != expected[name].shape:
            loaded[name] = resize(tensor, expected[name].shape)
            resized.append(f'{name} {tuple(tensor.shape)} to {tuple(loaded[name].shape)}')
    return resized


def _warm_start(
    backbone: nn.Module, loaded: dict[str, Tensor], expected: dict[str, Tensor]
) -> list[str]:
    """Add the paths that a plain network lacks, in place. Returns the layers where it did."""
    layers = []
    for layer, mix in _acmix_layers(backbone):
        missing = {n for n in expected if n.startswith(layer) and n not in loaded}
        paths = {n for n in expected if n.startswith((f'{layer}mix.', f'{layer}shift_conv.'))}
        if not paths or missing != paths or not isinstance(mix.alpha, nn.Parameter):
            continue
        loaded.update({name: expected[name].clone() for name in paths})
        loaded[f'{layer}mix.alpha'] = torch.ones_like(mix.alpha.detach())
        if isinstance(mix.beta, nn.Parameter):
            loaded[f'{layer}mix.beta'] = torch.zeros_like(mix.beta.detach())
        layers.append(layer.removesuffix('.'))
    return layers


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
        'not in the checkpoint, kept as they were': [n for n in expected if n not in loaded],
        'in the checkpoint, but without a place here': [
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
    """How many, and which: alike names of different layers as one, ``stages.*.norm.weight``."""
    alike = dict.fromkeys(re.sub(r'(?<=\.)\d+(?=\.)|(?<=^layer)\d+', '*', name) for name in names)
    return f'{len(names)} ({", ".join(alike if len(names) > 4 else names)})'
