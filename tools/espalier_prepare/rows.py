# SPDX-License-Identifier: Apache-2.0
"""Files -> rows. A row is a mapping from column (name or index) to value, with the file and line it came from.

Every malformed line is an error that names file and line; no line is skipped.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError, Place, shorten

FORMATS = ("tsv", "csv", "jsonl")


@dataclass(frozen=True)
class Row:
    place: Place
    fields: list[Any] | dict[str, Any]  # by index (tables) or by key (JSON lines)
    names: dict[str, int] | None  # header name -> index; None without header

    def get(self, column: str) -> Any:
        """The value of a column given by name, or by index counted from 0."""
        if isinstance(self.fields, dict):
            if column not in self.fields:
                raise self.place.error(f"expected the key {column!r}, found the keys {sorted(self.fields)}")
            return self.fields[column]
        return self.fields[self._index(column)]

    def get_text(self, column: str, role: str) -> str:
        value = self.get(column)
        if not isinstance(value, str):
            raise self.place.error(f"expected text in column {column!r} ({role}), found {shorten(value)}")
        if not value.strip():
            raise self.place.error(
                f"expected text in column {column!r} ({role}), found nothing; remove the row or mend it"
            )
        return value

    def _index(self, column: str) -> int:
        if self.names is not None and column in self.names:
            return self.names[column]
        if column.isascii() and column.isdigit():
            if int(column) < len(self.fields):
                return int(column)
            raise self.place.error(
                f"expected a column with index {column}, found {len(self.fields)} columns (indices count from 0)"
            )
        if self.names is None:
            raise InputError(
                f"{self.place.path}: the column {column!r} is given by name, but the file is read without a header; "
                "give its index (from 0) or leave out --no-header"
            )
        raise InputError(f"{self.place.path}:1: expected a column {column!r}, found {list(self.names)}")


def format_of(path: Path, chosen: str | None) -> str:
    """The format of a file, by option or by its suffix."""
    if chosen is not None:
        return chosen
    suffix = path.suffix.lower().lstrip(".")
    if suffix in FORMATS:
        return suffix
    raise InputError(
        f"{path}: expected a file that ends in .tsv, .csv or .jsonl, found {path.suffix!r}; "
        "say which it is with --format"
    )


def read_rows(path: Path, file_format: str, has_header: bool) -> Iterator[Row]:
    """All rows of a file in order."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if file_format == "jsonl":
        yield from _read_json_lines(path)
    else:
        yield from _read_table(path, file_format, has_header)


def _read_lines(path: Path) -> Iterator[tuple[Place, str]]:
    """Decoded lines without their ends. Lines end at LF alone: other Unicode separators are part of a text."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            place = Place(path, number)
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise place.error(
                    f"expected UTF-8, found the byte 0x{raw[error.start]:02x} at position {error.start} of the line; "
                    "convert the file (iconv -t utf-8)"
                ) from None
            yield place, line.removesuffix("\n").removesuffix("\r")


def _read_json_lines(path: Path) -> Iterator[Row]:
    for place, line in _read_lines(path):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise place.error(f"expected one JSON object per line, found {shorten(line)} ({error.msg})") from None
        if not isinstance(value, dict):
            raise place.error(f"expected a JSON object, found {shorten(line)}")
        yield Row(place, value, None)


def _read_table(path: Path, file_format: str, has_header: bool) -> Iterator[Row]:
    split = _split_tabs if file_format == "tsv" else _split_commas
    names: dict[str, int] | None = None
    width: int | None = None
    for place, fields in split(path):
        if width is None:
            width = len(fields)
            if has_header:
                names = {name: index for index, name in enumerate(fields)}
                if len(names) != width:
                    raise place.error(f"expected every column name once, found {fields}")
                continue
        if len(fields) != width:
            raise place.error(f"expected {width} fields as in the first line, found {len(fields)}: {shorten(fields)}")
        yield Row(place, fields, names)


def _split_tabs(path: Path) -> Iterator[tuple[Place, list[str]]]:
    # Quotes are ordinary characters here, as in GLUE and most published TSV files.
    for place, line in _read_lines(path):
        yield place, line.split("\t")


def _split_commas(path: Path) -> Iterator[tuple[Place, list[str]]]:
    # A quoted field may span lines, so the reader gets the line ends back and tells the line where a row ended.
    reader = csv.reader((line + "\n" for _, line in _read_lines(path)), strict=True)
    while True:
        first_line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise Place(path, first_line).error(f"expected a CSV row, found none ({error})") from None
        yield Place(path, first_line), fields
