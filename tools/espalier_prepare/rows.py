# SPDX-License-Identifier: Apache-2.0
"""Files -> rows. A row is a mapping from column (name or index) to value, with the file and line it came from.

One reader per file format. A malformed line takes its place in the stream as an error that names file and line, so that
the caller can name all of them; no line is skipped. What makes a whole file unreadable is raised.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError, Place, RowError, shorten

# The csv module takes longer fields for an error unless told; documents are longer than its 131,072 characters.
csv.field_size_limit(sys.maxsize)

FORMATS = ("tsv", "csv", "jsonl", "json", "parquet", "text")
_SUFFIXES = {"tsv": "tsv", "csv": "csv", "jsonl": "jsonl", "json": "json", "parquet": "parquet", "txt": "text"}


@dataclass(frozen=True)
class Row:
    place: Place
    fields: list[Any] | dict[str, Any]  # by index (tables) or by key (all others)
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

    def has(self, column: str) -> bool:
        return column in (self.fields if isinstance(self.fields, dict) else self.names or {})

    def pick(self, columns: Sequence[str], role: str) -> str:
        """The first of `columns` that is there: published forms of one dataset name a column differently."""
        for column in columns:
            if self.has(column):
                return column
        found = list(self.fields if isinstance(self.fields, dict) else self.names or {})
        message = f"expected a column out of {list(columns)} ({role}), found {found}"
        if isinstance(self.fields, dict):
            raise self.place.error(message)
        raise InputError(f"{self.place.path}:1: {message}")

    def _index(self, column: str) -> int:
        if self.names is not None and column in self.names:
            return self.names[column]
        if column.isascii() and column.isdigit():
            if int(column) < len(self.fields):
                return int(column)
            raise InputError(
                f"{self.place.path}:{self.place.line}: expected a column with index {column}, found "
                f"{len(self.fields)} columns (indices count from 0)"
            )
        if self.names is None:
            raise InputError(
                f"{self.place.path}: the column {column!r} is given by name, but the file is read without a header; "
                "give its index (from 0) or leave out --no-header"
            )
        raise InputError(f"{self.place.path}:1: expected a column {column!r}, found {list(self.names)}")


Rows = Iterator[Row | RowError]


def format_of(path: Path, chosen: str | None) -> str:
    """The format of a file, by option or by its suffix."""
    if chosen is not None:
        return chosen
    suffix = path.suffix.lower().lstrip(".")
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    raise InputError(
        f"{path}: expected a file that ends in {', '.join('.' + known for known in _SUFFIXES)}, found {path.suffix!r}; "
        "say which it is with --format"
    )


def read_rows(path: Path, file_format: str, header: bool | Sequence[str]) -> Rows:
    """All rows of a file in order. `header` of a table: whether the first line names the columns, or the names of a
    table that has no such line."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if file_format in ("tsv", "csv"):
        yield from _read_table(path, file_format, header)
    else:
        yield from {"jsonl": _read_json_lines, "json": _read_json, "parquet": _read_parquet, "text": _read_text}[
            file_format
        ](path)


@dataclass(frozen=True)
class _Line:
    place: Place
    text: str
    error: RowError | None


def read_lines(path: Path) -> Iterator[_Line]:
    """Decoded lines without their ends. Lines end at LF alone: other Unicode separators are part of a text."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            place = Place(path, number)
            encoding = "utf-8-sig" if number == 1 else "utf-8"
            error = None
            try:
                text = raw.decode(encoding)
            except UnicodeDecodeError as found:
                text = raw.decode(encoding, errors="replace")
                error = place.error(
                    f"expected UTF-8, found the byte 0x{raw[found.start]:02x} at position {found.start} of the line; "
                    "convert the file (iconv -t utf-8)"
                )
            yield _Line(place, text.removesuffix("\n").removesuffix("\r"), error)


def _read_json_lines(path: Path) -> Rows:
    for line in read_lines(path):
        yield line.error or _json_row(line)


def _json_row(line: _Line) -> Row | RowError:
    try:
        value = json.loads(line.text)
    except json.JSONDecodeError as error:
        return line.place.error(f"expected one JSON object per line, found {shorten(line.text)} ({error.msg})")
    if not isinstance(value, dict):
        return line.place.error(f"expected a JSON object, found {shorten(line.text)}")
    return Row(line.place, value, None)


def _read_json(path: Path) -> Rows:
    try:
        values = json.loads(path.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{path}: expected a JSON list of objects ({error})") from None
    if not isinstance(values, list):
        raise InputError(f"{path}: expected a JSON list of objects, found {shorten(values)}")
    for number, value in enumerate(values, start=1):
        place = Place(path, number)
        is_object = isinstance(value, dict)
        yield Row(place, value, None) if is_object else place.error(f"expected an object, found {shorten(value)}")


def _read_parquet(path: Path) -> Rows:
    import pyarrow  # here, because it loads slowly and most runs do without
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for value in batch.to_pylist():
                number += 1
                yield Row(Place(path, number), value, None)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a Parquet file ({error}); it fails after row {number}") from None


def _read_text(path: Path) -> Rows:
    lines = list(read_lines(path))
    errors = [line.error for line in lines if line.error is not None]
    yield from errors
    if not errors:
        yield Row(Place(path, 1), {"text": "\n".join(line.text for line in lines)}, None)


def _read_table(path: Path, file_format: str, header: bool | Sequence[str]) -> Rows:
    split = _split_tabs if file_format == "tsv" else _split_commas
    names = None if isinstance(header, bool) else {name: index for index, name in enumerate(header)}
    width = None if names is None else len(names)
    for place, fields in split(path):
        if isinstance(fields, RowError):
            if width is None and header:
                raise InputError(str(fields))
            yield fields
            continue
        if width is None:
            width = len(fields)
            if header:
                names = {name: index for index, name in enumerate(fields)}
                if len(names) != width:
                    raise InputError(f"{path}:1: expected every column name once, found {fields}")
                continue
        if len(fields) != width:
            what = "as the dataset has" if not isinstance(header, bool) else "as in the first line"
            yield place.error(f"expected {width} fields {what}, found {len(fields)}: {shorten(fields)}")
            continue
        yield Row(place, fields, names)


def _split_tabs(path: Path) -> Iterator[tuple[Place, list[str] | RowError]]:
    # Quotes are ordinary characters here, as in GLUE and most published TSV files.
    for line in read_lines(path):
        yield line.place, line.error or line.text.split("\t")


def _split_commas(path: Path) -> Iterator[tuple[Place, list[str] | RowError]]:
    # A quoted field may span lines, so the reader gets the line ends back and tells the line where a row ended. An
    # undecodable line goes in too: left out, it would glue its neighbours together.
    undecodable: list[RowError] = []

    def texts() -> Iterator[str]:
        for line in read_lines(path):
            if line.error is not None:
                undecodable.append(line.error)
            yield line.text + "\n"

    reader = csv.reader(texts(), strict=True)
    while True:
        place = Place(path, reader.line_num + 1)
        try:
            fields: list[str] | RowError = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fields = place.error(f"expected a CSV row, found none ({error})")
        yield place, undecodable[0] if undecodable else fields
        undecodable.clear()
