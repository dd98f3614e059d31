import numpy as np
import pytest
import torch
from determinism import deterministic, operators_called
from torch import Tensor

from acmix_mm.ops.padding import reflect_indices, reflect_pad2d


@pytest.mark.parametrize('size', [1, 2, 3, 7])
@pytest.mark.parametrize('padding', [0, 1, 3, 10])
def test_indices_reflect_as_numpy_does(size, padding):
    expected = np.pad(np.arange(size), padding, mode='reflect')
    assert reflect_indices(size, padding).tolist() == expected.tolist()


@pytest.mark.parametrize('size', [(1, 1), (2, 9), (5, 4), (9, 8)])
def test_pad_reflects_as_numpy_does(size):
    x = torch.randn(2, 3, *size)
    expected = np.pad(x.numpy(), [(0, 0), (0, 0), (3, 3), (3, 3)], mode='reflect')
    np.testing.assert_array_equal(reflect_pad2d(x, 3).numpy(), expected)


@pytest.mark.parametrize('size', [(5, 4), (9, 8)])
def test_deterministic_padding_is_the_same(size):
    """The gradient of ``F.pad`` is refused then, on GPUs."""
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, size[0] + 6, size[1] + 6, dtype=torch.float64)

    def pad() -> list[Tensor]:
        out = reflect_pad2d(x, 3)
        return [out, *torch.autograd.grad((out * weight).sum(), x)]

    assert any('reflection_pad2d' in name for name in operators_called(pad))
    expected = pad()
    with deterministic():
        assert not any('reflection_pad2d' in name for name in operators_called(pad))
        torch.testing.assert_close(pad(), expected)
