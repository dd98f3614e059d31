"""Parts of models as networks from an image to tensors."""

from types import SimpleNamespace

import torch
from torch import nn

from acmix_mm.runtime.parts import Classification


class Classifier(nn.Module):
    """What a head of mmpretrain does: the last of several maps, to logits."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 5)

    def forward(self, maps):
        return self.linear(maps[-1].mean((2, 3)))


def test_classification_without_a_neck():
    head = Classifier()
    network = Classification(SimpleNamespace(backbone=lambda x: (x, x[:, 1:]), head=head))
    image = torch.randn(2, 3, 4, 5)
    (logits,) = network(image)
    assert logits.shape == (2, 5)
    assert torch.equal(logits, head((image[:, 1:],)))
