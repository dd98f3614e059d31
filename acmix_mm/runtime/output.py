# SPDX-License-Identifier: Apache-2.0
"""Write what a tool produces."""

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

from ..atomic_write import WriteError, write_atomically


def write_output(path: str | Path, content: str | bytes) -> None:
    """Write a file with :func:`write_atomically`, or end the process with one message.

    Args:
        path: Path of the file. Its folder is created if needed.
        content: Text or bytes.
    """
    try:
        write_atomically(path, content)
    except WriteError as error:
        sys.exit(str(error))


def write_figure(path: str | Path, figure: Any) -> None:
    """Write a figure of matplotlib as a PNG with :func:`write_output`.

    Args:
        path: Path of the file.
        figure: A ``matplotlib.figure.Figure``.
    """
    content = BytesIO()
    figure.savefig(content, format='png', dpi=150)
    write_output(path, content.getvalue())
