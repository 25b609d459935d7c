# SPDX-License-Identifier: Apache-2.0
"""The one error of the preparation: the user's input is wrong. It says where, what was expected and what was found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class InputError(Exception):
    """Ends the program with exit code 2."""


@dataclass(frozen=True)
class Place:
    """Where a row came from; errors name it."""

    path: Path
    line: int  # from 1

    def error(self, message: str) -> InputError:
        return InputError(f"{self.path}:{self.line}: {message}")


def shorten(text: object, limit: int = 60) -> str:
    """`text` quoted for an error message."""
    quoted = repr(text)
    return quoted if len(quoted) <= limit else quoted[: limit - 3] + "..."
