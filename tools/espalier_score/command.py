# SPDX-License-Identifier: Apache-2.0
"""The command of tools/score.py: generated rows and references -> metrics as JSON on standard output."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espalier_prepare.errors import InputError, run_program

from .classes import class_metrics, number_metrics, to_number
from .generated import Decoder, read_generated, write_texts
from .metrics import METRICS, Unavailable, usual_metrics
from .references import DatasetSplit, References, from_dataset, read_dataset, read_references
from .vqa import scored_accuracy

_DESCRIPTION = """\
Scores what `espalier generate` wrote (docs/generate.md): JSON with the number of rows and the metrics. References are
the targets of the dataset, or files of them. Without references, --text-output alone decodes."""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="score.py", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--generated", type=Path, required=True, help="JSON lines of row and token_ids, or of row and text"
    )
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json: the model's")
    parser.add_argument("--dataset", type=Path, help="the dataset file whose prompts were given: targets and row ids")
    parser.add_argument("--split", default="test", help="of the dataset (default: test)")
    parser.add_argument(
        "--references",
        type=Path,
        nargs="+",
        help="in place of the targets: text files (line r of each is of row r), JSON lines, captions of COCO, answers "
        "of VQA",
    )
    parser.add_argument(
        "--merge-same-input",
        action="store_true",
        help="rows of one input are scored once, with all their targets as references (E2E)",
    )
    parser.add_argument("--metrics", help=f"out of {','.join(METRICS)} (default: those that fit the references)")
    parser.add_argument("--text-output", type=Path, help="JSON lines to write: row, id and text")
    return parser


def score(texts: Sequence[str], references: References, names: Sequence[str]) -> dict[str, Any]:
    """Requires: the references of every row, in the order of the texts."""
    of_rows = [references.by_row[row] for row in sorted(references.by_row)]
    metrics: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    if references.class_texts:
        metrics |= class_metrics(texts, _classes(references, of_rows), references.class_texts)
    elif not references.is_vqa and all(len(of_row) == 1 for of_row in of_rows):
        numbers = [to_number(of_row[0]) for of_row in of_rows]
        if None not in numbers:
            metrics |= number_metrics(texts, numbers)
    for name in names:
        try:
            if name == "vqa_accuracy" and references.scores_by_row is not None:
                metrics[name] = _scored_vqa(texts, references, of_rows)
            else:
                metrics[name] = METRICS[name](texts, of_rows)
        except Unavailable as reason:
            skipped[name] = str(reason)
    return {"rows": len(texts), "metrics": metrics, "skipped": skipped}


def _scored_vqa(texts: Sequence[str], references: References, of_rows: Sequence[Sequence[str]]) -> float:
    scores = [references.scores_by_row[row] for row in sorted(references.by_row)]
    return sum(map(scored_accuracy, texts, of_rows, scores)) / len(texts)


def _classes(references: References, of_rows: Sequence[Sequence[str]]) -> list[str]:
    for of_row in of_rows:
        if of_row[0] not in references.class_texts:
            raise InputError(
                f"{references.where}: expected targets out of {list(references.class_texts)}, found {of_row[0]!r}; "
                "--tokenizer cannot write them, or it is the wrong one"
            )
    return [of_row[0] for of_row in of_rows]


def texts_of(path: Path, generated: dict[int, str], references: References, split: DatasetSplit | None) -> list[str]:
    """The texts of the rows that have references. All rows must be there, and no others."""
    known = set(references.by_row) if split is None else set(range(split.num_rows))
    if unknown := sorted(set(generated) - known):
        raise InputError(
            f"{path}: expected the {len(known)} rows of {references.where}, found also row {unknown[0]} "
            f"({len(unknown)} such); this is the wrong dataset or split"
        )
    if missing := sorted(known - set(generated)):
        raise InputError(
            f"{path}: expected the {len(known)} rows of {references.where}, found none for {len(missing)} of them: "
            f"{', '.join(map(str, missing[:10]))}{', ...' if len(missing) > 10 else ''}; generate them, or this is the "
            "wrong dataset or split"
        )
    return [generated[row] for row in sorted(references.by_row)]


def run(options: argparse.Namespace) -> None:
    if options.dataset is None and options.references is None and options.text_output is None:
        raise InputError("expected --dataset or --references to score with, or --text-output, found none")
    if options.merge_same_input and (options.dataset is None or options.references is not None):
        raise InputError("--merge-same-input: expected with the targets of --dataset, and without --references")
    decoder = None if options.tokenizer is None else Decoder(options.tokenizer)
    texts = read_generated(options.generated, decoder)
    split = None
    if options.dataset is not None:
        split = read_dataset(options.dataset, options.split, decoder, needs_targets=options.references is None)
    references = None
    if options.references is not None:
        references = read_references(options.references, split)
    elif split is not None:
        references = from_dataset(split, options.merge_same_input)
    if references is not None:
        chosen = texts_of(options.generated, texts, references, split)
        result = score(chosen, references, _names(options.metrics, references))
    if options.text_output is not None:
        write_texts(options.text_output, texts, None if split is None else split.ids)
    if references is not None:
        print(json.dumps(result, indent=2))


def _names(wanted: str | None, references: References) -> list[str]:
    if wanted is None:
        return usual_metrics(references)
    names = wanted.split(",")
    if unknown := [name for name in names if name not in METRICS]:
        raise InputError(f"--metrics: expected names out of {list(METRICS)}, found {unknown}")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    return run_program("score.py", lambda: run(options), options.text_output)
