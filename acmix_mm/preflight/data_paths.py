# SPDX-License-Identifier: Apache-2.0
"""Check that the data which a config reads is there, before anything is built."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.utils import is_abs

from .known_datasets import KNOWN


@dataclass(frozen=True)
class Missing:
    """A path that a config reads and that does not exist.

    Attributes:
        path: As the dataset would open it.
        used_by: Place in the config that names it, such as ``'train_dataloader, ann_file'``.
        source: Where to get the data, or None if that is not known.
    """

    path: str
    used_by: str
    source: str | None = None


def check_data(cfg: Config, *splits: str) -> None:
    """Raise one clear error if data of a config is missing.

    Args:
        cfg: A config in the form of mmdet, mmseg or mmpretrain.
        *splits: Of ``'train'``, ``'val'``, ``'test'``: the data loaders and evaluators to look at.
            A split that the config does not have is passed over.

    Raises:
        FileNotFoundError: Something is missing. The message names every path, where it was looked
            for, and how to go on.

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
    """Everything that a config reads and that is not there, each path once.

    An empty folder counts as missing. What lies in remote storage (``s3://...``, a `backend_args`
    other than local) is taken to be there.

    Args:
        cfg: See :func:`check_data`.
        *splits: See :func:`check_data`.

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
    """The dataset configs below wrappers such as RepeatDataset, ConcatDataset or MultiImageMix.

    Args:
        dataset: Config of a dataset, wrapped or not.

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
    """The local paths that a dataset reads, by the field of its config that names them.

    Args:
        dataset: Config of a dataset, not of a wrapper.

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
        fields['split'] = dataset.get('split')  # mmpretrain's name for a folder below the root
    fields.update({f'data_prefix.{name}': path for name, path in prefix.items()})
    root = dataset.get('data_root') or ''
    paths = {
        field: path if is_abs(path) else os.path.join(root, path)
        for field, path in fields.items()
        if isinstance(path, str) and path
    }
    return paths or ({'data_root': root} if root else {})


def is_remote(cfg: Mapping) -> bool:
    """Whether the files of a dataset or an evaluator lie in remote storage."""
    return (cfg.get('backend_args') or {}).get('backend', 'local') != 'local'


def _paths_of_split(cfg: Config, split: str) -> Iterator[tuple[str, str, str | None]]:
    loader = cfg.get(f'{split}_dataloader')
    for dataset in leaf_datasets(loader['dataset']) if loader else ():
        known = KNOWN.get(dataset.get('type', ''))
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
    sources = sorted({m.source for m in missing if m.source}) or ["see the data set's own page"]
    return '\n'.join([
        f'Data of {cfg.filename or "this config"} are missing. '
        f'Not found, or empty (working directory: {Path.cwd()}):',
        *(f'  {m.path:{width}}  ({m.used_by})' for m in missing),
        'To continue, either:',
        *(f'  * get it: {source}' for source in sources),
        '    and put it in these places, or name its folder: --cfg-options data_root=FOLDER',
        '    (docs/data.md shows how; tools/dataset/check.py then checks the files themselves)',
        '  * try without data: `make demo` makes a small data set and trains on it',
    ])  # fmt: skip
