"""The two second stages of ACmix as functions on tensors; needs torch and nothing else."""

from .functional import available_backends, neighborhood_attention, shift_conv

__all__ = ['available_backends', 'neighborhood_attention', 'shift_conv']
