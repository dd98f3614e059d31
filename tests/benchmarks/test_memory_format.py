"""benchmarks/memory_format.py compares channels_last tensors with contiguous ones."""

from functools import partial

import pytest
import torch
from torch import nn

from benchmarks import memory_format


class Copy(nn.Module):
    """Returns two maps, of which one is contiguous."""

    def forward(self, x):
        assert x.is_contiguous(memory_format=torch.channels_last)
        return x.contiguous(), x[:, :2]


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    shape = (1, 3, 8, 9)
    networks = dict(convolution=(partial(nn.Conv2d, 3, 4, 3), shape), copy=(Copy, shape))
    monkeypatch.setattr(memory_format, 'NETWORKS', networks)


def test_formats_of_outputs():
    assert memory_format.format_of_output('convolution') == 'channels_last'
    assert memory_format.format_of_output('copy') == 'contiguous, other'


@pytest.mark.parametrize('mode', [memory_format.FORWARD, memory_format.BOTH])
def test_ratio_is_that_of_channels_last_to_contiguous(monkeypatch, mode):
    seen = []

    def time_in_turn(functions, rounds):
        for function in functions.values():
            network, x, _ = function.args
            function()
            seen.append((x.is_contiguous(), network.weight.is_contiguous(), network.training))
        return dict(zip(functions, ([2.0, 6.0, 12.0], [1.0, 2.0, 3.0]), strict=True))

    monkeypatch.setattr(memory_format, 'time_in_turn', time_in_turn)
    assert memory_format.compare('convolution', mode, 3) == '3.00 (2.50-3.50)'
    training = mode == memory_format.BOTH
    assert seen == [(False, False, training), (True, True, training)]


def test_prints_a_row_for_each_network(monkeypatch, capsys):
    monkeypatch.delitem(memory_format.NETWORKS, 'copy')  # it has nothing to train
    memory_format.main(['--rounds', '2', '--threads', str(torch.get_num_threads())])
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 + 1
    assert rows[2].startswith('| convolution | channels_last | ')
