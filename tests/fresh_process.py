"""Runs code in a Python process of its own."""

import os
import subprocess
import sys


def run_python(code: str, **environment: str) -> None:
    """Fails with what the code wrote to stderr, unless it ended well."""
    result = subprocess.run(
        [sys.executable, '-c', code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
