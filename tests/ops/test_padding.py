import numpy as np
import pytest
import torch

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
