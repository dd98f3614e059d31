# SPDX-License-Identifier: Apache-2.0
"""ACmix backbones, each file from block to stage to backbone."""

from .pvt import ACmixPVT
from .resnet import ACmixResNet
from .san import ACmixSAN
from .swin import ACmixSwin

__all__ = ['ACmixPVT', 'ACmixResNet', 'ACmixSAN', 'ACmixSwin']
