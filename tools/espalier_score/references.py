# SPDX-License-Identifier: Apache-2.0
"""What the generated texts should be: the targets of a dataset file, or a file of references, several for a row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from espalier_prepare.errors import InputError, shorten
from espalier_prepare.rows import read_lines, read_rows

from .generated import Decoder


@dataclass
class References:
    """Every reference of a row counts; metrics take the best, or all, as each is defined."""

    where: str
    by_row: Mapping[int, Sequence[str]]
    class_texts: Sequence[str] = ()
    is_vqa: bool = False  # the answers that people gave, as often as they gave them, or with scores
    scores_by_row: Mapping[int, Sequence[float]] | None = None


@dataclass
class DatasetSplit:
    """What scoring needs of a dataset file (docs/dataset_format.md)."""

    path: Path
    name: str
    ids: list[str]
    targets: list[str] | None  # None: the texts were not asked for
    inputs: list[bytes]  # what each text was made from, as bytes to compare
    class_texts: list[str]
    references: References | None  # that the file itself has beside the targets

    @property
    def num_rows(self) -> int:
        return len(self.ids)


def read_dataset(path: Path, split: str, decoder: Decoder | None, needs_targets: bool) -> DatasetSplit:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with h5py.File(path) as file:
            task = file.attrs["task"]
            if task not in ("seq2seq", "causal_lm"):
                raise InputError(
                    f"{path}: expected a dataset of seq2seq or causal_lm, found {task}: espalier evaluate scores it"
                )
            if split not in file:
                raise InputError(f"{path}: expected a split {split!r} (--split), found {sorted(file)}")
            if decoder is not None and decoder.digest != file.attrs["tokenizer_digest"]:
                raise InputError(
                    f"{path}: expected a dataset made with the tokenizer of --tokenizer, found another; these are the "
                    "wrong dataset or the wrong folder"
                )
            group = file[split]
            rows, prompts = _rows(group, "input"), None
            if task == "causal_lm":
                prompts = group["prompt_lengths"][:]
                targets = [row[length:] for row, length in zip(rows, prompts, strict=True)]
                rows = [row[:length] for row, length in zip(rows, prompts, strict=True)]
            else:
                targets = _rows(group, "target")
            id_bytes, id_offsets = group["id_bytes"][:].tobytes(), group["id_offsets"][:]
            ids = [id_bytes[begin:end].decode() for begin, end in zip(id_offsets[:-1], id_offsets[1:], strict=True)]
            class_texts = json.loads(file.attrs["label_names"])
            references = _stored_references(group, f"{path}, split {split}", file.attrs.get("reference_kind", ""))
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: expected a dataset file of tools/prepare.py ({error})") from None
    needs_targets = needs_targets and references is None
    if needs_targets and decoder is None:
        raise InputError(f"{path}: expected --tokenizer to make texts of its targets, found none")
    texts = [decoder.decode(target.tolist()) for target in targets] if needs_targets else None
    return DatasetSplit(path, split, ids, texts, [row.tobytes() for row in rows], class_texts, references)


def _rows(group: h5py.Group, side: str) -> list[np.ndarray]:
    ids, offsets = group[f"{side}_ids"][:], group[f"{side}_offsets"][:]
    return [ids[begin:end] for begin, end in zip(offsets[:-1], offsets[1:], strict=True)]


def _stored_references(group: h5py.Group, where: str, kind: str) -> References | None:
    if "reference_bytes" not in group:
        return None
    content, offsets = group["reference_bytes"][:].tobytes(), group["reference_offsets"][:]
    texts = [content[begin:end].decode() for begin, end in zip(offsets[:-1], offsets[1:], strict=True)]
    rows = group["reference_row_offsets"][:].tolist()
    spans = list(enumerate(zip(rows[:-1], rows[1:], strict=True)))
    references = References(where, {row: texts[begin:end] for row, (begin, end) in spans}, is_vqa=kind == "answers")
    if "reference_scores" in group:
        scores = group["reference_scores"][:].tolist()
        references.scores_by_row = {row: scores[begin:end] for row, (begin, end) in spans}
    return references


def from_dataset(split: DatasetSplit, merge_same_input: bool) -> References:
    """What the file keeps to score with, else the target of each row. Merged: rows of one input are one row, the first, and all their targets references."""
    where = f"{split.path}, split {split.name}"
    if split.references is not None:
        if merge_same_input:
            raise InputError(f"--merge-same-input: expected a dataset without references of its own, found {where}")
        return split.references
    if not merge_same_input:
        by_row = {row: [target] for row, target in enumerate(split.targets)}
        return References(where, by_row, split.class_texts)
    first_of: dict[bytes, int] = {}
    merged: dict[int, list[str]] = {}
    for row, target in enumerate(split.targets):
        merged.setdefault(first_of.setdefault(split.inputs[row], row), []).append(target)
    return References(where, merged, split.class_texts)


def read_references(paths: Sequence[Path], split: DatasetSplit | None) -> References:
    """Plain text: line r of each file is a reference of row r. JSON lines: `reference` or `references`, by `row`, by
    `id` or in order. JSON: captions of COCO by image, or answers of VQA by question; the ids of the dataset's rows say
    which are whose."""
    where = ", ".join(str(path) for path in paths)
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
    suffixes = {path.suffix.lower() for path in paths}
    if suffixes & {".json", ".jsonl"} and len(paths) > 1:
        raise InputError(f"{where}: expected one JSON file, or plain text files, found several of them")
    if suffixes == {".json"}:
        by_id, is_vqa = _from_annotations(paths[0])
        return References(where, _by_row(by_id, split, where), is_vqa=is_vqa)
    by_row = _from_json_lines(paths[0], split) if suffixes == {".jsonl"} else _from_lines(paths)
    if split is not None and set(by_row) != set(range(split.num_rows)):
        raise InputError(
            f"{where}: expected references for the {split.num_rows} rows of {split.path}, split {split.name}, found "
            f"{len(by_row)}; this is the wrong dataset or split"
        )
    return References(where, by_row)


def _from_lines(paths: Sequence[Path]) -> dict[int, list[str]]:
    by_row: dict[int, list[str]] = {}
    for path in paths:
        count = 0
        for row, line in enumerate(read_lines(path)):
            if line.error is not None:
                raise line.error
            by_row.setdefault(row, []).append(line.text.strip())
            count = row + 1
        if count != len(by_row):
            raise InputError(f"{path}: expected as many lines as {paths[0]} ({len(by_row)}), found {count}")
    return by_row


def _from_json_lines(path: Path, split: DatasetSplit | None) -> dict[int, list[str]]:
    by_key: dict[Any, list[str]] = {}
    kinds = set()
    for number, line in enumerate(read_rows(path, "jsonl", True)):
        if isinstance(line, InputError):
            raise line
        kind = next((key for key in ("row", "id") if line.has(key)), "order")
        kinds.add(kind)
        key = number if kind == "order" else line.get(kind)
        expected = str if kind == "id" else int
        if not isinstance(key, expected) or isinstance(key, bool):
            what = "a text" if kind == "id" else "a whole number"
            raise line.place.error(f"expected {what} as {kind}, found {key!r}")
        references = line.get("references") if line.has("references") else [line.get("reference")]
        if not isinstance(references, list) or not references or not all(isinstance(text, str) for text in references):
            raise line.place.error(f"expected a list of texts as references, found {shorten(references)}")
        if key in by_key:
            raise line.place.error(f"expected every {kind} once, found {key!r} again")
        by_key[key] = [text.strip() for text in references]
    if len(kinds) > 1:
        raise InputError(f"{path}: expected all lines with a row, with an id or with neither, found {sorted(kinds)}")
    return _by_row(by_key, split, str(path)) if kinds == {"id"} else by_key


def _from_annotations(path: Path) -> tuple[dict[str, list[str]], bool]:
    """References by id, and whether they are answers of VQA."""
    by_id: dict[str, list[str]] = {}
    is_vqa = False
    item: Any = None
    try:
        for item in json.loads(path.read_bytes().decode("utf-8-sig"))["annotations"]:
            if "caption" in item:
                by_id.setdefault(str(item["image_id"]), []).append(str(item["caption"]).strip())
                continue
            is_vqa = True
            key = str(item["question_id"])
            if key in by_id:
                raise InputError(f"{path}: expected every question_id once, found {key} again")
            by_id[key] = [str(answer["answer"]) for answer in item["answers"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected JSON with a list 'annotations', captions with image_id or answers with question_id, "
            f"found {shorten(item)} ({error!r})"
        ) from None
    return by_id, is_vqa


def _by_row(by_id: Mapping[str, list[str]], split: DatasetSplit | None, where: str) -> dict[int, list[str]]:
    if split is None:
        raise InputError(f"{where}: expected --dataset, whose row ids say which references are whose, found none")
    unknown = [row_id for row_id in split.ids if row_id not in by_id]
    if unknown:
        raise InputError(
            f"{where}: expected references for every row of {split.path}, split {split.name}, found none for the ids "
            f"{shorten(unknown[:5])} ({len(unknown)} rows); this is the wrong dataset, or it was made without --id"
        )
    return {row: by_id[row_id] for row, row_id in enumerate(split.ids)}
