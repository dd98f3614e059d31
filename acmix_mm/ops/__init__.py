"""The stages of ACmix as functions on tensors; needs torch and nothing else."""

from .aggregation import neighborhood_aggregation
from .functional import available_backends, neighborhood_attention, pointwise_conv, shift_conv

__all__ = [
    'available_backends',
    'neighborhood_aggregation',
    'neighborhood_attention',
    'pointwise_conv',
    'shift_conv',
]
