"""tools/analysis/export_matrix.py, apart from its exports, which take minutes."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from versions import needs_torch


@pytest.fixture(scope='module')
def matrix(tool):
    return tool('analysis/export_matrix.py')


@needs_torch('2.9', 'torch.onnx.export by dynamo as the default')
def test_openvino(matrix, tmp_path):
    for name in ('onnx', 'onnxscript', 'onnxruntime', 'openvino'):
        pytest.importorskip(name)
    file = tmp_path / 'model.onnx'
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softmax(1))
    torch.onnx.export(
        model, (torch.zeros(1, 3, 8, 9),), file, input_names=['image'], verbose=False,
        dynamic_shapes=({2: torch.export.Dim('height')},),
    )  # fmt: skip
    shapes = ((1, 3, 8, 9), (1, 3, 12, 9))
    text = matrix.openvino_difference(file, [SimpleNamespace(shape=shape) for shape in shapes])
    assert float(text) < 1e-5


def test_without_openvino(matrix, tmp_path, monkeypatch):
    monkeypatch.setitem(matrix.openvino_difference.__globals__, 'find_spec', lambda name: None)
    assert matrix.openvino_difference(tmp_path / 'no.onnx', []) == ''


def test_plain_network_that_cannot_be_exported(matrix, tmp_path, monkeypatch, capsys):
    def export(*_):
        raise SystemExit('out was not written: onnx does not take this model')

    count = matrix.plain_number_of_nodes
    monkeypatch.setitem(count.__globals__, 'export', export)
    assert count(None, tmp_path, True) == 'not exported', 'the table goes on'
    assert 'onnx does not take this model' in capsys.readouterr().out


def test_networks_that_are_not_in_the_table(matrix, capsys):
    with pytest.raises(SystemExit):
        matrix.main(['ResNet-51'])
    assert 'there is ResNet-50, SAN-10, PVT-T, Swin-T, got ResNet-51' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        matrix.main(['SAN-10', '--page'])
    assert 'writes the results of all networks' in capsys.readouterr().err
