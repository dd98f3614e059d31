# SPDX-License-Identifier: Apache-2.0
"""Whether a graph is recorded for other programs, and for maps of sizes that are not known yet."""

from collections.abc import Sequence

import torch

from . import torch_compat


def is_exporting() -> bool:
    """Return whether ``torch.export`` or ``torch.onnx`` is recording a graph.

    Examples:
        >>> is_exporting()
        False
    """
    return torch.onnx.is_in_onnx_export() or torch_compat.is_exporting()


def sizes_are_open(size: Sequence[int]) -> bool:
    """Return whether a graph is recorded in which a size stays open.

    A decision that Python makes from such a height or width would hold for the recorded map alone.
    It must be made by tensors instead.

    Args:
        size: Height and width.

    Examples:
        >>> sizes_are_open((7, 7))
        False
    """
    return is_exporting() and not all(isinstance(length, int) for length in size)
