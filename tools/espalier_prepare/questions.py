# SPDX-License-Identifier: Apache-2.0
"""Multiple-choice questions in their published JSON forms: a prompt, the answers to choose from, and the right one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from .errors import InputError, RowError, shorten
from .forms import Example, Form, id_of
from .rows import Row, Rows, read_lines, read_rows

_LABELS_SUFFIX = "-labels.lst"


@dataclass(frozen=True)
class Question:
    prompt: str
    choices: Sequence[str]
    answer: int


def _lettered(row: Row) -> tuple[str, list[str], int]:
    """Stem, choices and answer of the forms of AI2: choices with letters (or digits), the answer by its letter. As
    published the stem and a list of choices are below `question`; on the hub, stem and two lists stand side by side."""
    question = row.get("question") if row.has("question") else row.get("question_stem")
    if isinstance(question, dict):
        inner = Row(row.place, question, None)
        stem, choices = inner.get_text("stem", "question"), inner.get("choices")
        pairs = [(item.get("label"), item.get("text")) for item in choices] if _are_objects(choices) else None
    else:
        stem = row.get_text(row.pick(("question", "question_stem"), "question"), "question")
        choices = row.get("choices")
        pairs = None
        if (
            isinstance(choices, dict)
            and isinstance(choices.get("label"), list)
            and isinstance(choices.get("text"), list)
        ):
            pairs = list(zip_longest(choices["label"], choices["text"]))
    if pairs is None:
        raise row.place.error(f"expected choices with label and text, found {shorten(choices)}")
    letters = [letter for letter, _ in pairs]
    key = row.get_text("answerKey", "answer")
    if letters.count(key) != 1:
        raise row.place.error(f"expected an answerKey out of {letters}, found {key!r}")
    return stem, [_choice(row, text) for _, text in pairs], letters.index(key)


def _are_objects(choices: Any) -> bool:
    return isinstance(choices, list) and all(isinstance(item, dict) for item in choices)


def _choice(row: Row, text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise row.place.error(f"expected a text for every choice, found {shorten(text)}")
    return text


def _openbookqa(row: Row) -> Question:
    return Question(*_lettered(row))


def _arc(row: Row) -> Question:
    stem, choices, answer = _lettered(row)
    return Question(f"Question: {stem}\nAnswer:", choices, answer)


def _piqa(row: Row) -> Question:
    label = row.get("label")
    if str(label).strip() not in ("0", "1"):
        raise row.place.error(f"expected 0 or 1 as label, found {shorten(label)}")
    goal = row.get_text("goal", "question")
    return Question(f"Question: {goal} Answer:", [row.get_text(key, "choice") for key in ("sol1", "sol2")], int(label))


def _sciq(row: Row) -> Question:
    choices = [row.get_text(key, "choice") for key in ("distractor1", "distractor2", "distractor3", "correct_answer")]
    support = row.get("support")  # empty for some questions
    if not isinstance(support, str):
        raise row.place.error(f"expected text in column 'support', found {shorten(support)}")
    prompt = f"{support}\nQuestion: {row.get_text('question', 'question')}\nAnswer:"
    return Question(prompt.lstrip(), choices, 3)


@dataclass(frozen=True)
class QuestionForm(Form):
    read: Callable[[Row], Question] | None = None

    def companions(self, path: Path) -> list[Path]:
        # PIQA keeps the labels of train.jsonl in train-labels.lst, one a line.
        labels = path.with_name(path.stem + _LABELS_SUFFIX)
        return [labels] if labels.is_file() else []

    def rows(self, path: Path, file_format: str) -> Rows:
        labels = self.companions(path)
        rows = read_rows(path, file_format, True)
        return _with_labels(rows, path, labels[0]) if labels else rows

    def example(self, row: Row) -> Example:
        question = self.read(row)
        if len(question.choices) < 2:
            raise row.place.error(f"expected at least two choices, found {shorten(list(question.choices))}")
        right = question.choices[question.answer]
        return Example(row.place, id_of(row, ("id",)), question.prompt, None, right, question.choices, question.answer)


def _with_labels(rows: Rows, path: Path, labels: Path) -> Rows:
    for row, label in zip_longest(rows, read_lines(labels)):
        if row is None or label is None:
            raise InputError(f"{labels}: expected one label for every line of {path.name}, found more or fewer")
        if isinstance(row, RowError) or label.error is not None:
            yield row if isinstance(row, RowError) else label.error
        else:
            yield Row(row.place, {**row.fields, "label": label.text}, None)


def _form(read: Callable[[Row], Question], train: str, validation: str, test: str | None) -> QuestionForm:
    """By the published names; then by those of the hub."""
    files = {"train": (train,), "validation": (validation,)} | ({"test": (test,)} if test else {})
    files = {
        split: (*names, f"{split}.jsonl", f"{split}-*.parquet", f"{split}.parquet") for split, names in files.items()
    }
    return QuestionForm(("multiple_choice", "causal_lm", "seq2seq"), files, read=read)


FORMS = {
    "openbookqa": _form(_openbookqa, "train.jsonl", "dev.jsonl", "test.jsonl"),
    "piqa": _form(_piqa, "train.jsonl", "valid.jsonl", None),
    "arc_easy": _form(_arc, "ARC-Easy-Train.jsonl", "ARC-Easy-Dev.jsonl", "ARC-Easy-Test.jsonl"),
    "arc_challenge": _form(_arc, "ARC-Challenge-Train.jsonl", "ARC-Challenge-Dev.jsonl", "ARC-Challenge-Test.jsonl"),
    "sciq": _form(_sciq, "train.json", "valid.json", "test.json"),
}
