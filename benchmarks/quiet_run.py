# SPDX-License-Identifier: Apache-2.0
"""Runs a program whose output nobody wants to see unless it fails."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_SHOWN_LINES = 30


def run_quietly(command: Sequence[str], folder: Path | None = None, shows_log: bool = False) -> None:
    """Throws: CalledProcessError, after the last lines of what the program said on standard error."""
    log = None if shows_log else subprocess.PIPE
    result = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=log, text=True, errors="replace")
    if result.returncode != 0:
        print(*(result.stderr or "").splitlines()[-_SHOWN_LINES:], sep="\n", file=sys.stderr)
        result.check_returncode()
