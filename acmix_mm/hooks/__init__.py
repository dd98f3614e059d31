# SPDX-License-Identifier: Apache-2.0
"""Hooks for mmengine's runners."""

from .balance_paths import BalancePathsHook, balance_paths
from .checkpoint import ResumableCheckpointHook
from .path_weights import PathShare, PathShares, PathWeightsHook

__all__ = [
    'BalancePathsHook',
    'PathShare',
    'PathShares',
    'PathWeightsHook',
    'ResumableCheckpointHook',
    'balance_paths',
]
