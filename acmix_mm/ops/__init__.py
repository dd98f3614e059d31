# SPDX-License-Identifier: Apache-2.0
"""The stages of ACmix as functions on tensors. They need torch alone."""

from .backends.registry import available_backends, use_backend
from .functional import (
    neighborhood_aggregation,
    neighborhood_attention,
    pointwise_conv,
    shift_conv,
)

__all__ = [
    'available_backends',
    'neighborhood_aggregation',
    'neighborhood_attention',
    'pointwise_conv',
    'shift_conv',
    'use_backend',
]
