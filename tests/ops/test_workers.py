"""Operators in the workers of a DataLoader, which are forked from a process with threads."""

import multiprocessing

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from acmix_mm.layers import ACmix


class Features(Dataset):
    """Computes an ACmix layer, with its gradients, where a data set would decode an image."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.layer = ACmix(8, 8)
        self.images = torch.randn(6, 8, 20, 21)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        out = self.layer(self.images[index : index + 1])
        (gradient,) = torch.autograd.grad(out.square().sum(), self.layer.qkv.weight)
        return torch.cat([out.detach().flatten(), gradient.flatten()])


@pytest.mark.skipif('fork' not in multiprocessing.get_all_start_methods(), reason='needs fork')
def test_forked_workers():
    data = Features()
    threads = torch.get_num_threads()
    torch.set_num_threads(4)  # of which the workers must not wait
    try:
        expected = torch.stack([data[i] for i in range(len(data))])
        loader = DataLoader(data, num_workers=2, multiprocessing_context='fork', timeout=60)
        found = torch.cat(list(loader))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
