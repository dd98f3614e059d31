# SPDX-License-Identifier: Apache-2.0
"""Check that the data of a config exists, before anything is built."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.utils import is_abs

from .known_datasets import KNOWN
from .type_name import type_name


@dataclass(frozen=True)
class Missing:
    """A path that a config reads and that does not exist.

    Attributes:
        path: The path that the data set or evaluator would open.
        used_by: Place in the config that names the path, such as ``'train_dataloader, ann_file'``.
        source: Where to get the data, or None if that is not known. Default: None.
    """

    path: str
    used_by: str
    source: str | None = None


def check_data(cfg: Config, *splits: str) -> None:
    """Raise an error that lists all missing data of a config.

    Args:
        cfg: Config in the format of mmdet, mmseg or mmpretrain.
        *splits: Splits whose data loaders and evaluators are checked, from ``'train'``, ``'val'``
            and ``'test'``. Splits that the config does not have are ignored.

    Raises:
        FileNotFoundError: Data is missing. The message names every missing path, the working
            directory, and how to continue.

    Examples:
        >>> dataset = dict(type='CocoDataset', data_root='nowhere', data_prefix=dict(img='val2017'))
        >>> check_data(Config(dict(val_dataloader=dict(dataset=dataset))), 'val')
        Traceback (most recent call last):
        ...
        FileNotFoundError: ...
    """
    missing = missing_data(cfg, *splits)
    if missing:
        raise FileNotFoundError(_message(cfg, missing))


def missing_data(cfg: Config, *splits: str) -> list[Missing]:
    """Return all paths that a config reads and that do not exist, each of them once.

    Empty folders count as missing. Files in remote storage (``s3://...``, or a ``backend_args``
    that is not local) are not checked.

    Args:
        cfg: Config in the format of mmdet, mmseg or mmpretrain.
        *splits: Splits whose data loaders and evaluators are checked, see :func:`check_data`.

    Examples:
        >>> dataset = dict(ann_file='a.json', data_root='nowhere')
        >>> cfg = Config(dict(test_dataloader=dict(dataset=dict(type='A', datasets=[dataset]))))
        >>> [m.path for m in missing_data(cfg, 'train', 'test')]
        ['nowhere/a.json']
    """
    missing: dict[str, Missing] = {}
    for split in splits:
        for path, used_by, source in _paths_of_split(cfg, split):
            if not _is_there(path):
                missing.setdefault(path, Missing(path, used_by, source))
    return list(missing.values())


def leaf_datasets(dataset: dict) -> Iterator[dict]:
    """Yield the configs of data sets inside wrappers such as ``RepeatDataset``, ``ConcatDataset``.

    Args:
        dataset: Config of a data set or of a wrapper.

    Examples:
        >>> wrapped = dict(type='RepeatDataset', dataset=dict(type='CocoDataset'), times=2)
        >>> list(leaf_datasets(wrapped))
        [{'type': 'CocoDataset'}]
    """
    inner = dataset.get('datasets', dataset.get('dataset'))
    if inner is None:
        yield dataset
        return
    for child in [inner] if isinstance(inner, dict) else inner:
        yield from leaf_datasets(child)


def dataset_paths(dataset: Mapping) -> dict[str, str]:
    """Return the local paths that a data set reads, by the fields of its config that name them.

    Args:
        dataset: Config of a data set, not of a wrapper.

    Examples:
        >>> prefix = dict(img_path='images/val', seg_map_path='')
        >>> dataset_paths(dict(data_root='data/ade', data_prefix=prefix))
        {'data_prefix.img_path': 'data/ade/images/val'}
    """
    if is_remote(dataset):
        return {}
    prefix = dataset.get('data_prefix') or {}
    if isinstance(prefix, str):
        prefix = dict(img_path=prefix)
    fields = dict(ann_file=dataset.get('ann_file'))
    if not prefix:
        fields['split'] = dataset.get('split')  # mmpretrain: a folder inside data_root
    fields.update({f'data_prefix.{name}': path for name, path in prefix.items()})
    root = dataset.get('data_root') or ''
    paths = {
        field: path if is_abs(path) else os.path.join(root, path)
        for field, path in fields.items()
        if isinstance(path, str) and path
    }
    return paths or ({'data_root': root} if root else {})


def is_remote(cfg: Mapping) -> bool:
    """Return whether the files of a data set or evaluator are in remote storage."""
    return (cfg.get('backend_args') or {}).get('backend', 'local') != 'local'


def _paths_of_split(cfg: Config, split: str) -> Iterator[tuple[str, str, str | None]]:
    loader = cfg.get(f'{split}_dataloader')
    for dataset in leaf_datasets(loader['dataset']) if loader else ():
        known = KNOWN.get(type_name(dataset.get('type')))
        source = cfg.get('data_source') or (known.source if known else None)
        for field, path in dataset_paths(dataset).items():
            yield path, f'{split}_dataloader, {field}', source
    evaluators = cfg.get(f'{split}_evaluator') or []
    for evaluator in [evaluators] if isinstance(evaluators, Mapping) else evaluators:
        if evaluator.get('ann_file') and not is_remote(evaluator):
            yield evaluator['ann_file'], f'{split}_evaluator, ann_file', None


def _is_there(path: str) -> bool:
    if '://' in path:
        return True
    if os.path.isdir(path):
        return any(os.scandir(path))
    return os.path.exists(path)


def _message(cfg: Config, missing: list[Missing]) -> str:
    width = max(len(m.path) for m in missing)
    sources = sorted({m.source for m in missing if m.source}) or ["see the data set's web page"]
    return '\n'.join([
        f'Data of {cfg.filename or "this config"} is missing. These files or folders were not '
        f'found, or are empty (working directory: {Path.cwd()}):',
        *(f'  {m.path:{width}}  ({m.used_by})' for m in missing),
        'To continue, either:',
        *(f'  * get the data: {source}' for source in sources),
        '    and store it in these places, or name its folder: --cfg-options data_root=FOLDER',
        '    (docs/data.md shows how; tools/dataset/check.py then checks the content of the files)',
        '  * try without data: `make demo` makes a small data set and trains on it',
    ])  # fmt: skip
