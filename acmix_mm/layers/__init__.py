# SPDX-License-Identifier: Apache-2.0
"""ACmix layers.

:class:`ACmix`, :class:`WindowACmix`, :class:`ShiftConv`, :class:`PathMix` and
:func:`merge_convolutions` need torch alone; the others build norms by mmcv.
"""

from .acmix import ACmix
from .merge import merge_convolutions
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
    'merge_convolutions',
]
