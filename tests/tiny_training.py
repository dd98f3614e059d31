"""A training of milliseconds with everything that makes resuming hard: dropout and random flips."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import Tensor, nn
from torch.utils.data import Dataset


@MODELS.register_module()
class TinyModel(BaseModel):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, x: Tensor, y: Tensor, mode: str = 'tensor') -> Any:
        loss = (self.layers(x)[:, 0] - y).square().mean()
        return dict(loss=loss) if mode == 'loss' else [loss]


@DATASETS.register_module()
class TinyDataset(Dataset):
    """Samples that are flipped and changed at random, with each of the three generators."""

    metainfo = dict(classes=('a',), palette=np.eye(3))

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x = torch.linspace(0, 1 + index, 6) + 0.1 * torch.rand(6)
        if np.random.rand() < 0.5:  # noqa: NPY002  as the transforms of mmcv do
            x = x.flip(0)
        return dict(x=x, y=torch.tensor(index + random.random()))


@METRICS.register_module()
class TinyMetric(BaseMetric):
    """A metric that gets better at each validation, and uses random numbers."""

    values = 0

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(torch.rand(1).item())

    def compute_metrics(self, results: list) -> dict[str, Any]:
        TinyMetric.values += 1
        return dict(score=np.float64(TinyMetric.values))


def tiny_config(work_dir: Path, by_epoch: bool = True, num_workers: int = 0, **hook: Any) -> Config:
    """Return the config of a training of 4 epochs of 4 iterations, or of 16 iterations.

    Args:
        work_dir: Its work dir.
        by_epoch: Whether the loop goes by epochs.
        num_workers: Number of workers of the training's data loader.
        **hook: Options of the checkpoint hook, which saves after every epoch or 4 iterations.
    """
    sampler = 'DefaultSampler' if by_epoch else 'InfiniteSampler'
    loader = dict(
        batch_size=2,
        num_workers=num_workers,
        dataset=dict(type='TinyDataset'),
        sampler=dict(type=sampler, shuffle=True),
        collate_fn=dict(type='default_collate'),
    )
    validation = dict(loader, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False))
    loop = (
        dict(type='EpochBasedTrainLoop', max_epochs=4, val_interval=1)
        if by_epoch
        else dict(type='IterBasedTrainLoop', max_iters=16, val_interval=4)
    )
    hooks = dict(
        checkpoint=dict(type='CheckpointHook', interval=1 if by_epoch else 4, by_epoch=by_epoch)
        | hook
    )
    return Config(
        dict(
            default_scope='mmengine',
            launcher='none',
            work_dir=str(work_dir),
            experiment_name=f'{Path(work_dir).name}_{random.getrandbits(64)}',
            model=dict(type='TinyModel'),
            train_dataloader=loader,
            val_dataloader=validation,
            test_dataloader=validation,
            val_evaluator=dict(type='TinyMetric'),
            test_evaluator=dict(type='TinyMetric'),
            train_cfg=loop,
            val_cfg=dict(),
            test_cfg=dict(),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01)),
            param_scheduler=dict(type='LinearLR', start_factor=0.1, end=3, by_epoch=by_epoch),
            default_hooks=hooks,
            randomness=dict(seed=0),
            log_level='ERROR',
        )
    )
