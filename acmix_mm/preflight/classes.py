# SPDX-License-Identifier: Apache-2.0
"""Check that the heads of a model have as many classes as the data, before anything is built."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from .data_paths import leaf_datasets
from .type_name import type_name

# Parts of a model whose ``num_classes`` is the number of classes of the data. Others, such as those
# of region proposals or of an additional data set, have numbers of their own.
_PARTS = (
    'bbox_head', 'mask_head', 'mask_iou_head', 'decode_head', 'auxiliary_head', 'head',
    'data_preprocessor',
)  # fmt: skip
# Heads in these parts that predict edges, or whose classes are texts.
_OTHER_HEADS = ('STDCHead', 'GroundingDINOHead', 'ATSSVLFusionHead', 'SideAdapterCLIPHead')
# Data sets that name more classes than trackers use.
_OTHER_DATASETS = ('MOTChallengeDataset',)
# Parts that are neither looked at nor into: region proposals, and identities of tracked objects.
_OTHER_PARTS = ('rpn_head', 'reid')


def check_classes(cfg: Config, *splits: str) -> None:
    """Raise an error that lists all heads whose number of classes is not that of the data.

    Nothing is read or built. Data sets that do not say in the config or in their own class which
    classes they have are not checked.

    Args:
        cfg: Config in the format of mmdet, mmseg or mmpretrain.
        *splits: Splits whose data sets are checked, from ``'train'``, ``'val'`` and ``'test'``.
            Splits that the config does not have are ignored.

    Raises:
        ValueError: Numbers of classes differ. The message names both numbers, where they come from,
            and how to continue.

    Examples:
        >>> dataset = dict(type='BaseDataset', metainfo=dict(classes=('disc', 'square')))
        >>> model = dict(type='RetinaNet', bbox_head=dict(num_classes=80))
        >>> check_classes(Config(dict(model=model, val_dataloader=dict(dataset=dataset))), 'val')
        Traceback (most recent call last):
        ...
        ValueError: ...
    """
    errors = dict.fromkeys(
        error
        for split in splits
        for dataset in leaf_datasets((cfg.get(f'{split}_dataloader') or {}).get('dataset') or {})
        for error in _class_errors(cfg, f'{split}_dataloader', dataset)
    )
    if errors:
        raise ValueError(
            '\n'.join([
                f'The classes of the data do not fit {cfg.filename or "this config"}:',
                *(f'  {error}' for error in errors),
            ])
        )  # fmt: skip


def numbers_of_classes(model: object) -> dict[str, int]:
    """Return the numbers of classes of the heads of a model, by their places in its config.

    Args:
        model: Config of a model.

    Examples:
        >>> heads = [dict(type='Shared2FCBBoxHead', num_classes=4)] * 2
        >>> numbers_of_classes(dict(rpn_head=dict(num_classes=1), roi_head=dict(bbox_head=heads)))
        {'model.roi_head.bbox_head.0.num_classes': 4, 'model.roi_head.bbox_head.1.num_classes': 4}
    """
    return dict(_numbers_of_classes(model, 'model', in_part=False))


def _numbers_of_classes(config: object, place: str, in_part: bool) -> Iterator[tuple[str, int]]:
    if isinstance(config, Mapping):
        names = ['num_things_classes', 'num_stuff_classes']
        if in_part and type_name(config.get('type')) not in _OTHER_HEADS:
            names.append('num_classes')
        yield from ((f'{place}.{name}', config[name]) for name in names if config.get(name))
        for key, value in config.items():
            if key not in _OTHER_PARTS:
                yield from _numbers_of_classes(value, f'{place}.{key}', key in _PARTS)
    elif isinstance(config, list | tuple):
        for i, value in enumerate(config):
            yield from _numbers_of_classes(value, f'{place}.{i}', in_part)


def _class_errors(cfg: Config, loader: str, dataset: Mapping) -> Iterator[str]:
    metainfo = _metainfo(dataset, cfg.get('default_scope'))
    classes = metainfo.get('classes')
    kind = type_name(dataset.get('type'))
    where = f'the {kind} of {loader}'
    if isinstance(classes, str) and not os.path.isfile(classes):
        yield (
            f'metainfo.classes of {where} is {classes!r}, neither a list of names nor a file with '
            f'one name a line. A tuple of one name needs a comma: classes=({classes!r},).'
        )
    if not classes or isinstance(classes, str) or kind in _OTHER_DATASETS:
        return
    things = metainfo.get('thing_classes', classes)
    names_of = dict(
        num_classes=things,
        num_things_classes=things,
        num_stuff_classes=metainfo.get('stuff_classes', ()),
    )
    preprocessor = cfg.get('data_preprocessor')  # mmengine hands it to the model
    numbers = numbers_of_classes(cfg.get('model')) | dict(
        _numbers_of_classes(preprocessor, 'data_preprocessor', in_part=True)
    )
    for place, number in numbers.items():
        names = names_of[place.rpartition('.')[2]]
        if number != len(names):
            shown = ', '.join(map(str, names[:3])) + (', ...' if len(names) > 3 else '')
            yield (
                f'{place} is {number}, but {where} has {len(names)} classes ({shown}). Set '
                f'{place}={len(names)}, or metainfo=dict(classes=(...)) of the data set to the '
                f'{number} classes of the model.'
            )


def _metainfo(dataset: Mapping, scope: str | None) -> Mapping[str, Any]:
    """Return the meta information of a data set's class, updated by that of its config."""
    kind = dataset.get('type')
    if isinstance(kind, str):
        try:
            with DATASETS.switch_scope_and_registry(dataset.get('_scope_', scope)) as registry:
                kind = registry.get(kind)
        except (ImportError, KeyError, RuntimeError):  # the runner reports what cannot be built
            kind = None
    # mmpretrain's data sets take the names as an argument, too.
    named = {'classes': dataset['classes']} if dataset.get('classes') else {}
    return {**getattr(kind, 'METAINFO', {}), **named, **(dataset.get('metainfo') or {})}
