# SPDX-License-Identifier: Apache-2.0
"""Checkpoint formats: pure functions from state dict to state dict, and reading and writing files.

Each backbone family has a module that defines its ``FAMILY``: how to recognise our own format, and
a table of rules for each foreign format. A backbone supports them with one line at the end of its
``__init__``, ``register_checkpoint_conversion(self, 'ACmixSwin', warm_start)``, see
:mod:`acmix_mm.backbones.loading`.
"""

from .classifier import head_names, of_whole_model
from .families import FAMILIES, identify
from .formats import Conversion, Family, Format, Rule, StateDict, rename
from .unwrap import backbone_part, unwrap

__all__ = [
    'FAMILIES',
    'Conversion',
    'Family',
    'Format',
    'Rule',
    'StateDict',
    'backbone_part',
    'head_names',
    'identify',
    'of_whole_model',
    'rename',
    'unwrap',
]
