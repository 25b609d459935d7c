# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the user's input, in sentences: where, what was expected and what was found."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_MOST_SHOWN = 20


class InputError(Exception):
    """Ends the program with exit code 2."""


class RowError(InputError):
    """One row is malformed; the rows after it can still be read."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(f"{place.path}:{place.line}: {message}" if place.line else f"{place.path}: {message}")
        self.place = place


@dataclass(frozen=True)
class Place:
    """Where a row came from; errors name it."""

    path: Path
    line: int  # from 1; in JSON and Parquet files, which have no lines: the row; 0: the whole file

    def error(self, message: str) -> RowError:
        return RowError(self, message)


class Problems:
    """All malformed rows: each is named on standard error (from the 21st on they are only counted), and then either
    refuses the run or, if the user said so, is left out and counted in the file."""

    def __init__(self, drop: bool) -> None:
        self._drop = drop
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        """Malformed rows by file name."""
        return dict(self._counts)

    def add(self, error: RowError) -> None:
        self._counts[error.place.path.name] += 1
        if self._counts.total() <= _MOST_SHOWN:
            print(f"prepare.py: {'left out: ' if self._drop else ''}{error}", file=sys.stderr)

    def require_none(self) -> None:
        """Throws unless malformed rows may be left out."""
        if self._counts and not self._drop:
            files = ", ".join(f"{name} {count}" for name, count in self._counts.items())
            raise InputError(
                f"{self._counts.total()} malformed rows ({files}), of which the first {_MOST_SHOWN} are shown; "
                "mend them, or leave them out with --drop-malformed"
            )


def run_program(name: str, run: Callable[[], None], written: Path | None) -> int:
    """The exit code: 0, 2 for what the user can mend, 5 for storage. What went wrong is said on standard error;
    `written` is the file to name where the error names none."""
    try:
        run()
    except InputError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{name}: {error.filename or written}: {error.strerror or error}", file=sys.stderr)
        return 5
    return 0


def shorten(text: object, limit: int = 60) -> str:
    """`text` quoted for an error message."""
    quoted = repr(text)
    return quoted if len(quoted) <= limit else quoted[: limit - 3] + "..."
