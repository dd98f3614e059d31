"""Runs code in a Python process of its own."""

import os
import subprocess
import sys


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code; fail with what it wrote to stderr if it fails, else return what it printed."""
    result = subprocess.run(
        [sys.executable, '-c', code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result
