"""Reads outputs of the released code and refills the parameters that made them.

The files in tests/data hold no weights: parameters and inputs come from a formula, given here.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / 'data'


def noise(size: int, seed: int) -> np.ndarray:
    """Reproducible numbers in [-1, 1)."""
    phase = np.sin(12.9898 * np.arange(size, dtype=np.float64) + 78.233 * seed) * 43758.5453
    return 2 * (phase - np.floor(phase)) - 1


def _parameter(name: str, shape: list[int], index: int) -> Tensor:
    n = noise(int(np.prod(shape)), index)
    if name.endswith('running_var'):
        n = 1 + 0.2 * n
    elif name.endswith(('rate1', 'rate2')):
        n = 0.5 + 0.25 * n
    elif len(shape) == 1:
        n = 1 + 0.2 * n if name.endswith('weight') else 0.1 * n
    elif name.endswith('relative_position_bias_table'):
        n = 0.5 * n
    else:
        n = n * np.sqrt(3 / (n.size / shape[0]))
    return torch.from_numpy(n.astype(np.float32)).reshape(shape)


@dataclass
class Golden:
    """One file: what the released code was given and what it returned.

    Attributes:
        args: The released class was built with.
        state_dict: Of the released class, float32.
        input: float64 (B, C, H, W).
        arrays: Outputs by name, as stored.
        note: How arrays were subsampled, if they were.
    """

    args: dict
    state_dict: dict[str, Tensor]
    input: Tensor
    arrays: dict[str, Tensor]
    note: str

    @classmethod
    def load(cls, name: str) -> 'Golden':
        """Read ``tests/data/{name}.npz``."""
        with np.load(DATA / f'{name}.npz') as file:
            meta = json.loads(str(file['meta']))
            arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != 'meta'}
        entries = enumerate(meta['keys'])
        state_dict = {key: _parameter(key, shape, i) for i, (key, shape) in entries}
        shape = meta['input_shape']
        x = torch.from_numpy(noise(int(np.prod(shape)), 999).astype(np.float32)).double()
        return cls(meta['args'], state_dict, x.reshape(shape), arrays, meta.get('note', ''))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest deviation, in units of the largest expected value."""
    return ((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()).item()
