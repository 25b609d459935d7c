# SPDX-License-Identifier: Apache-2.0
"""What a row means: a form makes an Example of it. One form reads columns that the user names; the forms of published
datasets (glue.py, questions.py) know their columns themselves."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import InputError, Place, shorten
from .labels import LabelRule
from .rows import Row, Rows, format_of, read_rows


@dataclass
class Example:
    """One row, as text."""

    place: Place
    id: str
    text: str  # to classify, to rewrite, or to go on from
    pair: str | None = None
    target: str | None = None
    choices: Sequence[str] = ()
    label: Any = None  # class name, number, list of names; with choices: the index of the right one
    more_labels: Sequence[Any] = ()  # of --extra-label
    images: Sequence[Sequence[str]] = ()  # of each the names that its features may have
    references: Sequence[str] = ()  # what a generated text is scored against, where that is more than the target
    scores: Sequence[float] = ()  # of the references


@dataclass(frozen=True)
class Form(ABC):
    """How the rows of one kind of source are read. Splits that `files` does not name are not read from a folder: the
    test sets of some datasets have no labels."""

    tasks: Sequence[str]  # that its examples serve, the usual one first
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)  # split -> patterns, the first that matches counts
    rule: LabelRule | None = None
    class_texts: Sequence[str] = ()  # where targets are the names of classes
    reference_kind: str = ""  # answers (as often as people gave them, or with scores) | texts

    def format_of(self, path: Path, chosen: str | None) -> str:
        return format_of(path, chosen)

    def rows(self, path: Path, file_format: str) -> Rows:
        return read_rows(path, file_format, True)

    def companions(self, path: Path) -> list[Path]:
        """Further files that `rows(path)` reads."""
        return []

    @abstractmethod
    def example(self, row: Row) -> Example | None:
        """None: an option drops the row."""

    def in_split(self, split: str, examples: Sequence[Example]) -> list[Example]:
        """What becomes of the examples once it is known which split they are in."""
        return list(examples)

    def find_files(self, folder: Path) -> dict[str, list[Path]]:
        """The files of a folder as published, by split."""
        if not folder.is_dir():
            raise InputError(f"{folder}: expected a folder (--folder), found none")
        found: dict[str, list[Path]] = {}
        for split, patterns in self.files.items():
            for pattern in patterns:
                if paths := sorted(folder.glob(pattern)):
                    found[split] = paths
                    break
        if "train" not in found:
            raise InputError(
                f"{folder}: expected a file out of {list(self.files.get('train', ()))} (train split), found "
                f"{sorted(path.name for path in folder.iterdir())[:20]}; name the files with --train and --validation"
            )
        return found


def id_of(row: Row, columns: Sequence[str]) -> str:
    """The row's id from the first of these columns that is there, else its file name and line."""
    column = next((column for column in columns if row.has(column)), None)
    return f"{row.place.path.name}:{row.place.line}" if column is None else id_from(row, column)


def id_from(row: Row, column: str) -> str:
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise row.place.error(f"expected text or a whole number in column {column!r} (id), found {shorten(value)}")
    return value


@dataclass(frozen=True)
class Prompt:
    """A text with columns in braces: "Question: {question}\\nAnswer:". A \\n or \\t of the command line is meant."""

    template: str

    def fill(self, row: Row) -> str:
        template = self.template.replace("\\n", "\n").replace("\\t", "\t")
        return re.sub(r"\{([^{}]+)\}", lambda match: row.get_text(match[1], "prompt"), template)

    def check(self) -> None:
        if not re.search(r"\{[^{}]+\}", self.template):
            raise InputError(
                f"--prompt: expected a column in braces, as in 'Question: {{question}}', found {self.template!r}"
            )


@dataclass(frozen=True)
class ColumnForm(Form):
    """Columns that the user names."""

    text: str | None = None  # a column, or else:
    prompt: Prompt | None = None
    pair: str | None = None
    target: str | None = None
    label: str | None = None
    more_labels: Sequence[str] = ()
    id: str | None = None
    has_header: bool = True

    def rows(self, path: Path, file_format: str) -> Rows:
        return read_rows(path, file_format, self.has_header)

    def example(self, row: Row) -> Example | None:
        example = Example(
            row.place,
            id_of(row, ()) if self.id is None else id_from(row, self.id),
            row.get_text(self.text, "text") if self.prompt is None else self.prompt.fill(row),
            None if self.pair is None else row.get_text(self.pair, "text pair"),
            None if self.target is None else row.get_text(self.target, "target"),
        )
        if self.label is not None:
            example.label = self.rule.parse(row.get(self.label), row.place)
            more = LabelRule(self.rule.task)
            example.more_labels = [more.parse(row.get(column), row.place) for column in self.more_labels]
            if example.label is None:
                return None
        return example


_TEXT_TASKS = ("causal_lm", "seq2seq")

COLUMN_FORMS = {
    "e2e": ColumnForm(
        _TEXT_TASKS,
        {
            "train": ("trainset.csv", "train*.csv"),
            "validation": ("devset.csv", "dev*.csv", "validation*.csv"),
            "test": ("testset_w_refs.csv", "test*.csv"),
        },
        prompt=Prompt("Input: {mr} Output:"),
        target="ref",
    ),
    "qa": ColumnForm(
        _TEXT_TASKS,
        {split: (f"{split}.jsonl",) for split in ("train", "validation", "test")},
        prompt=Prompt("Question: {question}\\nAnswer:"),
        target="answer",
    ),
}
