"""Run code in a new Python process."""

import os
import subprocess
import sys


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code in a new Python process, and fail with its stderr if it fails.

    Args:
        code: Python code to run.
        **environment: Environment variables to set in addition to those of this process.

    Returns:
        subprocess.CompletedProcess: The finished process, with its stdout and stderr as text.
    """
    result = subprocess.run(
        [sys.executable, '-c', code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result
