"""ACmix backbones, each file from block to stage to backbone."""

from .resnet import ACmixResNet

__all__ = ['ACmixResNet']
