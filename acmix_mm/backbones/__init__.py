"""ACmix backbones, each file from block to stage to backbone."""

from .pvt import ACmixPVT
from .resnet import ACmixResNet
from .san import ACmixSAN

__all__ = ['ACmixPVT', 'ACmixResNet', 'ACmixSAN']
