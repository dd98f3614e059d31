# SPDX-License-Identifier: Apache-2.0
"""The stages of ACmix as functions on tensors. They need torch alone.

Under :class:`torch.autocast` all of them compute in its dtype, as convolutions do. Within the
transforms of :mod:`torch.func` and in forward-mode differentiation, the compiled backends cannot
run: automatic choice then takes one that is made of torch's own operators.
"""

from .backends.registry import available_backends, use_backend
from .functional import (
    neighborhood_aggregation,
    neighborhood_attention,
    pointwise_conv,
    shift_conv,
    window_attention,
)
from .projection import Projection

__all__ = [
    'Projection',
    'available_backends',
    'neighborhood_aggregation',
    'neighborhood_attention',
    'pointwise_conv',
    'shift_conv',
    'use_backend',
    'window_attention',
]
