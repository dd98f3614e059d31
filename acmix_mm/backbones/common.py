# SPDX-License-Identifier: Apache-2.0
"""Arguments, freezing and the order of the layers, shared by the backbones."""

import logging
import re
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any
from weakref import WeakSet

from mmengine.logging import print_log
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers.types import OptConfig, OptMultiConfig
from ..ops.checks import check_positive


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
        if not isinstance(values, Sequence) or len(values) != num_stages:
            raise ValueError(
                f'{backbone}: {name} must have {num_stages} values, one for each stage, '
                f'got {values!r}'
            )
    if (
        not isinstance(out_indices, Sequence)
        or not out_indices
        or not all(hasattr(i, '__index__') and 0 <= i < num_stages for i in out_indices)
    ):
        raise ValueError(
            f'{backbone}: out_indices must be stages from 0 to {num_stages - 1}, got {out_indices}'
        )
    if not hasattr(frozen_stages, '__index__') or not -1 <= frozen_stages <= num_stages:
        raise ValueError(
            f'{backbone}: frozen_stages must be -1 (none) or 0 to {num_stages}, got {frozen_stages}'
        )


def check_numbers(backbone: str, drop_path_rate: float = 0.0, **sizes: int) -> None:
    """Validate numbers of channels and the drop probability.

    Args:
        backbone: Name of the backbone, for messages.
        drop_path_rate: Drop probability of the last block, at least 0 and less than 1.
        **sizes: Arguments that must be positive integers.

    Raises:
        ValueError: One of them is not such a number; the message names it.

    Examples:
        >>> check_numbers('ACmixPVT', drop_path_rate=0.1, embed_dims=64)
    """
    check_positive(of=backbone, **sizes)
    if not isinstance(drop_path_rate, Real) or not 0 <= drop_path_rate < 1:
        raise ValueError(
            f'{backbone}: drop_path_rate must be at least 0 and less than 1, got {drop_path_rate!r}'
        )


def resolve_pretrained(
    backbone: str, pretrained: str | None, init_cfg: OptMultiConfig
) -> OptMultiConfig:
    """Return the initialization config, for which ``pretrained`` may be the short form.

    Args:
        backbone: Name of the backbone, for messages.
        pretrained: Path of a checkpoint, or None.
        init_cfg: Initialization config, or None.

    Raises:
        TypeError: ``pretrained`` is no path.
        ValueError: Both are given.

    Examples:
        >>> resolve_pretrained('ACmixPVT', 'pvt.pth', None)
        {'type': 'Pretrained', 'checkpoint': 'pvt.pth'}
    """
    if pretrained is None:
        return init_cfg
    if not isinstance(pretrained, str):
        raise TypeError(
            f'{backbone}: pretrained must be the path of a checkpoint, a str, or None, '
            f'got {pretrained!r}'
        )
    if init_cfg:
        raise ValueError(
            f'{backbone}: pretrained={pretrained!r} and init_cfg={init_cfg!r} both name '
            'initial weights; set one of them to None'
        )
    return dict(type='Pretrained', checkpoint=pretrained)


def height_and_width(backbone: str, name: str, size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a size that is given by one or two numbers.

    Args:
        backbone: Name of the backbone, for messages.
        name: Name of the argument, for messages.
        size: Side of a square, or height and width.

    Raises:
        ValueError: There are more numbers than two, or one is not positive.

    Examples:
        >>> height_and_width('ACmixSwin', 'pretrain_img_size', 224)
        (224, 224)
    """
    sides = (size,) if isinstance(size, int) else tuple(size)
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ValueError(
            f'{backbone}: {name} must be the side of a square, or height and width, in pixels, '
            f'got {size}'
        )
    return sides[0], sides[-1]


def side_of_square(backbone: str, name: str, size: int | Sequence[int]) -> int:
    """Return the side of a square that is given by one or two equal numbers.

    Args:
        backbone: Name of the backbone, for messages.
        name: Name of the argument, for messages.
        size: Side, or height and width.

    Raises:
        ValueError: Height and width differ, or one is not positive.

    Examples:
        >>> side_of_square('ACmixSwin', 'window_size', (7, 7))
        7
    """
    height, width = height_and_width(backbone, name, size)
    if height != width:
        raise ValueError(f'{backbone}: {name} must be square, got {size}')
    return height


def resolve_arch(
    backbone: str,
    arch: str | dict[str, Any] | None,
    known: dict[str, dict[str, Any]],
    **sizes: Any,
) -> dict[str, Any]:
    """Look up the sizes of an architecture, or take those that are given.

    Args:
        backbone: Name of the backbone, for messages.
        arch: Name of the architecture, or its sizes as mmpretrain takes them; None means the sizes
            that are given, and those of the first known architecture for the others.
        known: Sizes by the names of the architectures.
        **sizes: Sizes by the names of the arguments; None where one is not given.

    Raises:
        ValueError: There is no such architecture, its sizes are not complete, or a given size
            contradicts it.

    Examples:
        >>> known = dict(tiny=dict(depths=(2, 6)), small=dict(depths=(2, 18)))
        >>> resolve_arch('ACmixSwin', 'small', known, depths=None)
        {'depths': (2, 18)}
    """
    first = next(iter(known.values()))
    if isinstance(arch, dict):
        if arch.keys() != first.keys():
            raise ValueError(f'{backbone}: arch must have the keys {[*first]}, got {[*arch]}')
        expected = dict(arch)
    elif arch is None or arch in known:
        expected = first if arch is None else known[arch]
    else:
        raise ValueError(f'{backbone}: arch must be one of {[*known]}, got {arch!r}')
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
        ValueError: ``acmix_cfg`` is no dict, or contains an argument that the backbone sets.

    Examples:
        >>> layer_options('ACmixPVT', dict(num_conv_pairs=2), num_heads=4)
        {'num_heads': 4, 'num_conv_pairs': 2}
    """
    if not isinstance(acmix_cfg, dict | None):
        raise ValueError(
            f'{backbone}: acmix_cfg must be a dict of arguments of its ACmix layers, or None, '
            f'got {acmix_cfg!r}'
        )
    for name in (acmix_cfg or {}).keys() & own.keys():
        raise ValueError(
            f'{backbone}: {name} of its ACmix layers is set by the backbone; remove '
            f'{name}={acmix_cfg[name]!r} from acmix_cfg'  # type: ignore[index]
        )
    return {**own, **(acmix_cfg or {})}


def layer_depth(param_name: str, prefix: str, depths: Sequence[int]) -> tuple[int, int]:
    """Return the layer of a parameter, and the number of layers, for layer-wise learning rates.

    Layer 0 precedes all blocks, each block is a layer, and the last layer is what follows them:
    norms of outputs, necks and heads. What a stage has before its first block belongs to the layer
    before that block; what it has after its last block, to that block, as in mmpretrain's
    ``SwinTransformer``.

    Args:
        param_name: Name of the parameter in the model.
        prefix: Name of the backbone in the model, with the trailing dot.
        depths: Number of blocks of each stage.

    Examples:
        >>> layer_depth('backbone.stages.1.blocks.0.norm1.weight', 'backbone.', (2, 2, 6, 2))
        (3, 14)
    """
    num_layers = sum(depths) + 2
    if not param_name.startswith(prefix):  # of a neck or a head
        return num_layers - 1, num_layers
    name = param_name.removeprefix(prefix)
    in_stage = re.match(r'stages\.(\d+)\.(\w+)(?:\.(\d+))?', name)
    if in_stage is None:
        is_stem = name.startswith(('stem', 'patch_embed', 'absolute_pos_embed'))
        return 0 if is_stem else num_layers - 1, num_layers
    stage, part = int(in_stage[1]), in_stage[2]
    layer = sum(depths[:stage])
    if part == 'blocks':
        layer += int(in_stage[3]) + 1
    elif part in ('downsample', 'norm'):
        layer += depths[stage]
    return layer, num_layers


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


# Networks whose statistics were looked at, so that this is done once: on a GPU it waits for it.
_seen_in_training: WeakSet[nn.Module] = WeakSet()


def warn_of_initial_statistics(network: nn.Module) -> None:
    """Warn, the first time, if BatchNorm layers will keep mean 0 and variance 1 during training.

    These are layers in eval mode that have seen no image: neither training nor a checkpoint has set
    their statistics. They do not normalize anything.

    Args:
        network: Network that is about to be trained.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
        >>> warn_of_initial_statistics(network)
    """
    if network in _seen_in_training:
        return
    _seen_in_training.add(network)
    fixed = [m for m in network.modules() if isinstance(m, _BatchNorm) and not m.training]
    initial = [norm for norm in fixed if _has_initial_statistics(norm)]
    if initial:
        print_log(
            f'{type(network).__name__}: {len(initial)} BatchNorm layers do not normalize: '
            'norm_eval or frozen_stages keeps them at mean 0 and variance 1, because no checkpoint '
            'has set their statistics. Load one before training (init_cfg, or load_from), or set '
            'norm_eval=False and frozen_stages=-1.',
            logger='current',
            level=logging.WARNING,
        )


def _has_initial_statistics(norm: _BatchNorm) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None or mean.is_meta:
        return False
    return not mean.any() and bool((variance == 1).all())
