"""The backend for graphs that other programs run, and when it is chosen."""

import pytest
import torch

from acmix_mm.ops import neighborhood_aggregation, neighborhood_attention
from acmix_mm.ops.backends.portable import windows
from acmix_mm.ops.backends.registry import OPERATORS, PORTABLE
from acmix_mm.ops.padding import reflect_pad2d

SIZES = [(9, 5), (17, 24), (8, 8), (3, 1), (1, 2), (1, 1)]


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize(('stride', 'dilation'), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_attention_agrees_with_its_definition(size, stride, dilation):
    torch.manual_seed(0)
    height, width = size
    k, v = torch.randn(2, 2, 3, 4, height, width, dtype=torch.float64)
    q = torch.randn(2, 3, 4, -(-height // stride), -(-width // stride), dtype=torch.float64)
    ours, expected = (
        neighborhood_attention(q, k, v, 7, stride, dilation, backend=backend)
        for backend in ('portable', 'reference')
    )
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize('size', SIZES)
def test_aggregation_agrees_with_its_definition(size):
    torch.manual_seed(0)
    weights = torch.randn(2, 2, 49, *size, dtype=torch.float64)
    v = torch.randn(2, 6, *size, dtype=torch.float64)
    ours, expected = (
        neighborhood_aggregation(weights, v, 7, backend=backend)
        for backend in ('portable', 'reference')
    )
    torch.testing.assert_close(ours, expected)
    unfolded = torch.nn.functional.unfold(reflect_pad2d(v, 3), 7).unflatten(2, size)
    torch.testing.assert_close(windows(v, 7), unfolded)


@pytest.mark.parametrize('exporting', [False, True])
def test_torch_onnx_gets_it_and_nothing_else_does(exporting, monkeypatch):
    monkeypatch.setattr(torch.onnx, 'is_in_onnx_export', lambda: exporting)
    called = []
    portable = OPERATORS['neighborhood_attention'][PORTABLE['neighborhood_attention']]
    spy = type(portable)(lambda *_: called.append(1), portable.cannot_run, portable.missing,
                         portable.by_name_only)  # fmt: skip
    monkeypatch.setitem(OPERATORS['neighborhood_attention'], 'portable', spy)
    neighborhood_attention(*torch.randn(3, 1, 2, 4, 5, 6), kernel_size=3)
    assert bool(called) is exporting


def test_every_operator_has_a_portable_backend():
    assert set(PORTABLE) == set(OPERATORS)
    assert all(PORTABLE[name] in backends for name, backends in OPERATORS.items())
