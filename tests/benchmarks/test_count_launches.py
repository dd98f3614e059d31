import pytest
import torch
from torch import nn

from acmix_mm.ops import available_backends
from acmix_mm.ops.backends.registry import OPERATORS
from benchmarks import count_launches

needs_triton = pytest.mark.skipif(
    'triton' not in available_backends('neighborhood_attention'), reason='Triton is not installed'
)


class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(-1).expand(3, -1) * 2


def test_views_are_free_and_expanded_axes_are_read_once():
    forward, backward = count_launches.count_step(Twice, (5, 100))
    assert dict(forward.kernels) == {'mul': 1}
    assert forward.megabytes == pytest.approx(1e-6 * 4 * (500 + 1500))
    assert dict(backward.kernels) == {'mul': 1, 'sum': 1}


@needs_triton
def test_dense_convolution_and_one_operator_move_less(capsys):
    backends = dict(OPERATORS['neighborhood_attention'])
    count_launches.main(['--operators'])
    assert OPERATORS['neighborhood_attention'] == backends, 'nothing is left changed'
    rows = [line.split(' | ') for line in capsys.readouterr().out.splitlines() if '64@' in line]
    megabytes = {row[1]: sum(map(int, row[3].strip(' |').split(' + '))) for row in rows}
    conv, dense = megabytes['conv3x3'], megabytes['ACmix, triton, dense']
    assert conv < dense < megabytes['ACmix, triton, composed'] < megabytes['ACmix, tiled, composed']
    assert conv < megabytes['ACmix, one operator'] < 0.7 * dense
    kernels = {row[1]: sum(map(int, row[2].split(' + '))) for row in rows}
    assert kernels['ACmix, one operator'] < 0.3 * kernels['ACmix, triton, dense']
