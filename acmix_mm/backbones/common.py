# SPDX-License-Identifier: Apache-2.0
"""Argument checks and freezing, shared by the backbones."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers.types import OptConfig


def check_stages(
    backbone: str,
    num_stages: int,
    out_indices: Sequence[int],
    frozen_stages: int,
    **per_stage: Sequence[Any],
) -> None:
    """Validate the arguments that describe stages.

    Args:
        backbone: Name of the backbone, for messages.
        num_stages: Number of stages.
        out_indices: Indices of the stages whose outputs are returned.
        frozen_stages: -1 for none, else 0 to ``num_stages``.
        **per_stage: Arguments with one value for each stage.

    Raises:
        ValueError: One of them does not fit; the message names it.

    Examples:
        >>> check_stages('ACmixPVT', 4, (0, 3), -1, strides=(4, 2, 2, 2))
    """
    for name, values in per_stage.items():
        if len(values) != num_stages:
            raise ValueError(
                f'{backbone}: {name} must have {num_stages} values, one for each stage, '
                f'got {values}'
            )
    if not out_indices or not all(0 <= index < num_stages for index in out_indices):
        raise ValueError(
            f'{backbone}: out_indices must be stages from 0 to {num_stages - 1}, got {out_indices}'
        )
    if not -1 <= frozen_stages <= num_stages:
        raise ValueError(
            f'{backbone}: frozen_stages must be -1 (none) or 0 to {num_stages}, got {frozen_stages}'
        )


def resolve_arch(
    backbone: str, arch: str | None, known: dict[str, dict[str, Any]], **sizes: Any
) -> dict[str, Any]:
    """Look up the sizes of an architecture, or take those that are given.

    Args:
        backbone: Name of the backbone, for messages.
        arch: Name of the architecture; None means the sizes that are given, and those of the first
            known architecture for the others.
        known: Sizes by the names of the architectures.
        **sizes: Sizes by the names of the arguments; None where one is not given.

    Raises:
        ValueError: There is no such architecture, or a given size contradicts it.

    Examples:
        >>> known = dict(tiny=dict(depths=(2, 6)), small=dict(depths=(2, 18)))
        >>> resolve_arch('ACmixSwin', 'small', known, depths=None)
        {'depths': (2, 18)}
    """
    if arch is not None and arch not in known:
        raise ValueError(f'{backbone}: arch must be one of {[*known]}, got {arch!r}')
    expected = known[arch or next(iter(known))]
    given = {name: value for name, value in sizes.items() if value is not None}
    for name, value in given.items():
        if arch is not None and _as_tuple(value) != _as_tuple(expected[name]):
            raise ValueError(
                f'{backbone}: arch={arch!r} means {name}={expected[name]}, but {name}={value} is '
                'given; leave one of them out'
            )
    return {**expected, **given}


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def layer_options(backbone: str, acmix_cfg: OptConfig, **own: Any) -> dict[str, Any]:
    """Join the arguments of an ACmix layer that a backbone sets with those of ``acmix_cfg``.

    Args:
        backbone: Name of the backbone, for messages.
        acmix_cfg: Arguments that the user sets, or None.
        **own: Arguments that the backbone sets.

    Raises:
        ValueError: ``acmix_cfg`` contains an argument that the backbone sets.

    Examples:
        >>> layer_options('ACmixPVT', dict(num_conv_pairs=2), num_heads=4)
        {'num_heads': 4, 'num_conv_pairs': 2}
    """
    for name in (acmix_cfg or {}).keys() & own.keys():
        raise ValueError(
            f'{backbone}: {name} of its ACmix layers is set by the backbone; remove '
            f'{name}={acmix_cfg[name]!r} from acmix_cfg'  # type: ignore[index]
        )
    return {**own, **(acmix_cfg or {})}


def freeze(modules: Iterable[nn.Module]) -> None:
    """Put modules in eval mode and stop their gradients.

    Examples:
        >>> layer = nn.Linear(2, 2)
        >>> freeze([layer])
        >>> layer.training, layer.weight.requires_grad
        (False, False)
    """
    for module in modules:
        module.eval().requires_grad_(False)


def eval_batch_norms(network: nn.Module) -> None:
    """Put every BatchNorm in eval mode, so that training leaves its statistics alone.

    Examples:
        >>> network = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout())
        >>> eval_batch_norms(network)
        >>> [module.training for module in network]
        [False, True]
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
