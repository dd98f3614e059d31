# SPDX-License-Identifier: Apache-2.0
"""Hooks for mmengine's runners."""

from .checkpoint import ResumableCheckpointHook
from .path_weights import PathShare, PathShares, PathWeightsHook

__all__ = ['PathShare', 'PathShares', 'PathWeightsHook', 'ResumableCheckpointHook']
