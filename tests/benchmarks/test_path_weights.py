"""benchmarks/path_weights.py measures what PathWeightsHook costs."""

import json

import pytest
import torch

from benchmarks import path_weights


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    network = (dict(depth=26, base_channels=8), (1, 3, 32, 32))
    monkeypatch.setattr(path_weights, 'NETWORKS', dict(tiny=network))


def test_cost_is_the_share_of_the_steps_between_two_measurements(monkeypatch, tmp_path):
    def time_in_turn(functions, rounds):
        for function in functions.values():
            function()
        return dict(zip(functions, ([0.1, 0.2, 0.3], [0.0] * 3, [0.1] * 3), strict=True))

    monkeypatch.setattr(path_weights, 'time_in_turn', time_in_turn)
    row = path_weights.measure('tiny', str(tmp_path), 3)
    # 0.1 s in 50 steps of 0.2 s.
    assert row == ('tiny', '1x3x32x32', '200', '100.0', '50', '1.00%')
    (log,) = tmp_path.rglob('scalars.json')
    (line,) = log.read_text().splitlines()
    shares = [key for key in json.loads(line) if key.endswith('convolution_share')]
    assert len(shares) == 8, 'one step of all layers was measured'


def test_prints_a_row_for_each_network(capsys):
    path_weights.main(['--rounds', '2', '--threads', str(torch.get_num_threads())])
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 + 1
    assert rows[2].startswith('| tiny | 1x3x32x32 | ')


@pytest.mark.parametrize('option', ['--rounds', '--threads'])
def test_numbers_that_are_too_small(option, capsys):
    with pytest.raises(SystemExit):
        path_weights.main([option, '0'])
    assert f'argument {option}: must be a whole number of at least 1' in capsys.readouterr().err
