# SPDX-License-Identifier: Apache-2.0
"""Names of the classes in a config."""

from typing import Any


def type_name(kind: Any) -> str:
    """Return the name of the class that the ``type`` in a config stands for.

    Args:
        kind: A registered name, with or without its scope or module, or, as in mmengine's pure
            Python configs, the class itself.

    Examples:
        >>> type_name('CocoDataset'), type_name('mmdet.CocoDataset'), type_name(dict)
        ('CocoDataset', 'CocoDataset', 'dict')
    """
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]
