"""Read outputs of the released code, and recompute the parameters and inputs that gave them.

The files in ``tests/data`` contain no weights: the formulas below give parameters and inputs.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / 'data'


def noise(size: int, seed: int) -> np.ndarray:
    """Return reproducible pseudo-random numbers in [-1, 1)."""
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
    """Arguments, parameters, input and outputs of a module of the released code.

    Attributes:
        args: Arguments that the released class was built with.
        state_dict: State dict of the released class, in float32.
        input: Input of the module, ``(B, C, H, W)`` in float64.
        arrays: Outputs by name, as stored in the file.
        note: How the outputs were subsampled; empty if they are complete.
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
    """Return the largest deviation, relative to the largest expected value."""
    return ((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()).item()
