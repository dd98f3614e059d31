"""ACmix layers; they know the operators and mmcv's blocks, not the backbones."""

from .acmix import ACmix, acmix_conv
from .patchwise_acmix import PatchwiseACmix
from .path_mix import PathMix
from .shift_conv import ShiftConv
from .spatial_reduction_acmix import SpatialReductionACmix
from .window_acmix import WindowACmix

__all__ = [
    'ACmix',
    'PatchwiseACmix',
    'PathMix',
    'ShiftConv',
    'SpatialReductionACmix',
    'WindowACmix',
    'acmix_conv',
]
