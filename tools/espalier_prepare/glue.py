# SPDX-License-Identifier: Apache-2.0
"""The eight GLUE tasks: as distributed (TSV) and as on the hub (JSON lines, Parquet), for encoders and for T5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .forms import Example, Form, id_of
from .labels import LabelRule
from .rows import Row, Rows, read_rows

TEMPLATES = ("encoder", "t5", "t5-digits")
_ID = ("idx", "index")
_SCORES = (0.0, 5.0)


@dataclass(frozen=True)
class GlueTask:
    """Columns by every name they have in some form. No classes: the label is a score."""

    texts: Sequence[Sequence[str]]
    label: Sequence[str]
    classes: Sequence[str]
    prompt: str  # the one of T5's own pre-training mixture; {0} is the first text
    lst_rule: str  # how the LST paper makes a test split (splits.RULES)
    digits_prompt: str = ""  # where the LST paper's differs
    header: Sequence[str] | None = None  # of TSV files that have none


TASKS = {
    "cola": GlueTask(
        (("sentence", "text"),),
        ("label",),
        ("unacceptable", "acceptable"),
        "cola sentence: {0}",
        "halve-validation",
        header=("source", "label", "notation", "sentence"),
    ),
    "sst2": GlueTask(
        (("sentence", "text"),),
        ("label",),
        ("negative", "positive"),
        "sst2 sentence: {0}",
        "hold-out",
    ),
    "mrpc": GlueTask(
        (("sentence1", "#1 String", "text1"), ("sentence2", "#2 String", "text2")),
        ("label", "Quality"),
        ("not_equivalent", "equivalent"),
        "mrpc sentence1: {0} sentence2: {1}",
        "halve-validation",
    ),
    "qqp": GlueTask(
        (("question1", "text1"), ("question2", "text2")),
        ("label", "is_duplicate"),
        ("not_duplicate", "duplicate"),
        "qqp question1: {0} question2: {1}",
        "hold-out",
    ),
    "stsb": GlueTask(
        (("sentence1", "text1"), ("sentence2", "text2")),
        ("label", "score"),
        (),
        "stsb sentence1: {0} sentence2: {1}",
        "halve-validation",
    ),
    "mnli": GlueTask(
        (("premise", "sentence1", "text1"), ("hypothesis", "sentence2", "text2")),
        ("gold_label", "label"),
        ("entailment", "neutral", "contradiction"),
        "mnli hypothesis: {1} premise: {0}",
        "mismatched",
        digits_prompt="mnli premise: {0} hypothesis {1}",
    ),
    "qnli": GlueTask(
        (("question", "text1"), ("sentence", "text2")),
        ("label",),
        ("entailment", "not_entailment"),
        "qnli question: {0} sentence: {1}",
        "hold-out",
    ),
    "rte": GlueTask(
        (("sentence1", "text1"), ("sentence2", "text2")),
        ("label",),
        ("entailment", "not_entailment"),
        "rte sentence1: {0} sentence2: {1}",
        "halve-validation",
    ),
}


def _patterns(split: str, tsv: str) -> Sequence[str]:
    return (f"{tsv}.tsv", f"{split}.jsonl", f"{split}-*.parquet", f"{split}.parquet")


@dataclass(frozen=True)
class GlueForm(Form):
    task: GlueTask | None = None
    template: str = "encoder"

    def rows(self, path: Path, file_format: str) -> Rows:
        return read_rows(path, file_format, self.task.header if file_format == "tsv" and self.task.header else True)

    def example(self, row: Row) -> Example:
        texts = [row.get_text(row.pick(names, "text"), "text") for names in self.task.texts]
        label = self.rule.parse(row.get(row.pick(self.task.label, "label")), row.place)
        example = Example(row.place, id_of(row, _ID), texts[0], label=label)
        if self.template == "encoder":
            example.pair = texts[1] if len(texts) > 1 else None
        else:
            example.text = self.prompt().format(*texts)
            example.target = self.target(label)
        return example

    def prompt(self) -> str:
        return self.task.digits_prompt or self.task.prompt if self.template == "t5-digits" else self.task.prompt

    def target(self, label: str | float) -> str:
        if isinstance(label, float):
            return f"{round(label * 5) / 5:.1f}"  # in steps of 0.2, as T5 learned to write them
        return str(self.task.classes.index(label)) if self.template == "t5-digits" else label


def make_form(name: str, template: str) -> GlueForm:
    task = TASKS[name]
    if template == "encoder":
        tasks: Sequence[str] = ("classification",) if task.classes else ("regression",)
    else:
        tasks = ("seq2seq",)
    files = {"train": _patterns("train", "train")}
    if name == "mnli":
        files["validation"] = _patterns("validation_matched", "dev_matched")
        files["validation_mismatched"] = _patterns("validation_mismatched", "dev_mismatched")
    else:
        files["validation"] = _patterns("validation", "dev")
    if task.classes:
        rule = LabelRule("classification", names=list(task.classes), names_by_index=True)
    else:
        rule = LabelRule("regression", bounds=_SCORES)
    digits = [str(index) for index in range(len(task.classes))]
    texts = () if template == "encoder" else digits if template == "t5-digits" else task.classes
    return GlueForm(tasks, files, rule, texts, task=task, template=template)
