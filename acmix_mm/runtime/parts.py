# SPDX-License-Identifier: Apache-2.0
"""Parts of detectors, segmentors and classifiers as networks from an image to tensors, for exports.

They are not defined in a tool, because TorchScript files contain the names of their modules.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class Features(nn.Module):
    """Backbone and neck of a model: (B, 3, H, W) to a tuple of maps."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.neck = getattr(model, 'neck', None)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> maps."""
        maps = self.backbone(image)
        return tuple(maps if self.neck is None else self.neck(maps))


class Segmentation(Features):
    """A segmentor: (B, 3, H, W) to logits (B, classes, H, W)."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.head = model.decode_head
        self.align_corners: bool = model.align_corners

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> (B, classes, H, W)."""
        logits = self.head(super().forward(image))
        size, align = image.shape[2:], self.align_corners
        return (F.interpolate(logits, size, mode='bilinear', align_corners=align),)


class Classification(Features):
    """A classifier: (B, 3, H, W) to logits (B, classes)."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.head = model.head

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> (B, classes)."""
        return (self.head(super().forward(image)),)


class DenseDetection(Features):
    """A one-stage detector: (B, 3, H, W) to the maps of its head, in the head's order."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.head = model.bbox_head

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> maps."""
        return tuple(tensor for maps in self.head(super().forward(image)) for tensor in maps)
