"""ACmix layers; they know the operators and mmcv's blocks, not the backbones."""

from .acmix import ACmix, acmix_conv
from .path_mix import PathMix
from .shift_conv import ShiftConv

__all__ = ['ACmix', 'PathMix', 'ShiftConv', 'acmix_conv']
