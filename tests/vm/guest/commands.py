"""multusctl, as a user types it."""

import contextlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass

from multus.cli import main


@dataclass(frozen=True, kw_only=True)
class Said:
    """An exit code, and all that was printed."""

    code: int
    text: str


def multusctl(*words: str, apart: bool = False) -> Said:
    """Run it; `apart` in a process of its own, whose imports take seconds on this machine."""
    if apart:
        command = [sys.executable, "-m", "multus.cli", *words]
        environment = {**os.environ, "NO_COLOR": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
        return Said(code=done.returncode, text=done.stdout + done.stderr)
    with io.StringIO() as printed, contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main(words)
        return Said(code=code, text=printed.getvalue())
