"""Grad-CAM and its relatives work on every ACmix layer, in every backbone.

What they need is tested without a library. The package ``grad-cam``, which needs torchvision, is
tested where it is installed.
"""

from collections.abc import Iterable
from typing import Any

import cv2
import pytest
import torch
from torch import Tensor, nn

from acmix_mm.layers.attention_maps import acmix_layers
from acmix_mm.ops import use_backend
from acmix_mm.registry import MODELS

BACKBONES: dict[str, dict[str, Any]] = {
    'ACmixResNet': dict(depth=26, base_channels=8),
    'ACmixSwin': dict(embed_dims=8, depths=(1, 1, 1, 2), num_heads=(1, 2, 4, 8)),
    'ACmixPVT': dict(num_layers=(1, 1, 1, 1)),
    'ACmixSAN': dict(depth=10, base_channels=32),
}
CHANNELS_LAST = ('ACmixSwin', 'ACmixPVT')


class Classifier(nn.Module):
    """A backbone, global pooling and a linear map to four classes."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = MODELS.build(dict(type=name, **BACKBONES[name])).eval()
        self.linear = nn.LazyLinear(4)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 4)."""
        return self.linear(self.backbone(image)[-1].mean((2, 3)))


@pytest.fixture(params=BACKBONES)
def name(request):
    return request.param


@pytest.fixture
def classifier(name):
    model = Classifier(name)
    model(torch.rand(1, 3, 64, 64))
    return model


@pytest.fixture
def image():
    torch.manual_seed(1)
    return torch.randn(1, 3, 64, 96)


def channels_first(maps: Tensor) -> Tensor:
    return maps.permute(0, 3, 1, 2)


def observed(model: nn.Module, layers: Iterable[nn.Module], image: Tensor) -> list[list[Tensor]]:
    """Activations of layers, and gradients of the score of class 2, taken as grad-cam does."""
    seen: list[list[Tensor]] = []

    def hook(_: nn.Module, __: tuple, output: Tensor) -> None:
        # A copy, because an activation may work in place.
        pair = [output.detach().clone()]
        output.register_hook(lambda gradient: pair.append(gradient.clone()))
        seen.append(pair)

    handles = [layer.register_forward_hook(hook) for layer in layers]
    model(image)[0, 2].backward()
    for handle in handles:
        handle.remove()
    return seen


def test_hooks_see_activations_and_gradients_of_every_layer(name, classifier, image):
    # In float32, rounding puts a few activations on the other side of a ReLU.
    classifier.double()
    image, layers = image.double(), acmix_layers(classifier.backbone).values()
    ours = observed(classifier, layers, image)
    with use_backend('reference'):
        theirs = observed(classifier, layers, image)
    assert len(ours) == len(layers)
    for pair, expected in zip(ours, theirs, strict=True):
        for found, tensor in zip(pair, expected, strict=True):
            largest = float(tensor.abs().max())
            assert largest > 0
            torch.testing.assert_close(found, tensor, rtol=1e-9, atol=1e-9 * largest)
        maps = channels_first(pair[0]) if name in CHANNELS_LAST else pair[0]
        height, width = maps.shape[2:]
        assert width == height * 3 // 2, 'the shape of the image'


def test_gradient_is_that_of_the_score(classifier, image):
    """Against finite differences of what follows a layer."""
    classifier.double()
    image, layer = image.double(), [*acmix_layers(classifier.backbone).values()][-2]
    [(activations, gradients)] = observed(classifier, [layer], image)
    direction = torch.randn_like(activations)
    # Small: a ReLU must not change its side.
    scores, size = [], 1e-7 * float(activations.abs().mean())
    for step in (size, -size):
        handle = layer.register_forward_hook(lambda _, __, out, s=step: out + s * direction)
        with torch.no_grad():
            scores.append(classifier(image)[0, 2])
        handle.remove()
    slope = (scores[0] - scores[1]) / (2 * size)
    torch.testing.assert_close(slope, (gradients * direction).sum(), rtol=1e-5, atol=1e-9)


def test_package(name, classifier, image):
    """The map of the package is that of Grad-CAM's definition, in the size of the image."""
    package = pytest.importorskip('pytorch_grad_cam')
    targets = pytest.importorskip('pytorch_grad_cam.utils.model_targets')
    layer = [*acmix_layers(classifier.backbone).values()][-1]
    transform = channels_first if name in CHANNELS_LAST else None
    [pair] = observed(classifier, [layer], image)
    activations, gradients = map(transform, pair) if transform else pair
    weights = gradients.mean((2, 3), keepdim=True)
    expected = (weights * activations).sum(1).relu()[0].numpy()
    with package.GradCAM(classifier, [layer], reshape_transform=transform) as cam:
        (found,) = cam(image, [targets.ClassifierOutputTarget(2)])
    expected = cv2.resize(expected - expected.min(), (96, 64))
    expected -= expected.min()
    assert expected.max() > 0
    # Its division by the largest value is not exact for small ones.
    assert found / found.max() == pytest.approx(expected / expected.max(), abs=1e-3)
