# SPDX-License-Identifier: Apache-2.0
"""Examples of one split -> the arrays of docs/dataset_format.md, for every task."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import images, labels, store
from .encoding import TextEncoder, Tokens
from .errors import InputError, Problems
from .features import FeatureFiles
from .forms import Example, Form

LABEL_TASKS = ("classification", "regression", "multi_label")
TASKS = (*LABEL_TASKS, "seq2seq", "causal_lm", "multiple_choice", images.TASK)
_FEWEST_CLASSES = {"classification": 2, "multi_label": 1, "regression": 0, images.TASK: 2}


@dataclass
class EncodedSplit:
    arrays: dict[str, store.Array]
    num_rows: int
    lengths: np.ndarray  # input tokens
    num_truncated: int
    about: str  # for the summary


class Encoder:
    """Encodes splits alike: one task, one set of classes over all of them."""

    def __init__(
        self,
        task: str,
        form: Form,
        reader: TextEncoder | images.ImageDecoder,
        options: argparse.Namespace,
        problems: Problems,
    ) -> None:
        self.task = task
        self.form = form
        self.reader = reader
        self.options = options
        self.problems = problems
        self.features = None if options.features is None else FeatureFiles(options.features, options.box_order)
        self.names: list[str] = list(form.class_texts)
        self.column_names: dict[str, list[str]] = {}

    def name_classes(self, examples: Sequence[Example]) -> None:
        """Fixes the classes: all of any split."""
        if self.task not in _FEWEST_CLASSES:
            return
        self.names = self.form.rule.class_names([example.label for example in examples])
        if len(self.names) < _FEWEST_CLASSES[self.task]:
            raise InputError(f"expected at least two classes in the labels, found {self.names}")
        for index, column in enumerate(self.options.extra_label or ()):
            if not re.fullmatch(r"\w+", column, re.ASCII):
                raise InputError(f"--extra-label: expected a column of letters, digits and _, found {column!r}")
            values = [example.more_labels[index] for example in examples]
            names = labels.LabelRule(self.task).class_names(values)
            if len(names) < _FEWEST_CLASSES[self.task]:
                raise InputError(
                    f"--extra-label {column}: expected at least two classes in the column, found {names}; there is "
                    "nothing to learn from it, leave the option out"
                )
            self.column_names[column] = names

    def attributes(self) -> dict[str, str | int]:
        count = 1 if self.task == "regression" else len(self.names) if self.task in _FEWEST_CLASSES else 0
        attributes: dict[str, str | int] = {"num_labels": count, "label_names": json.dumps(self.names)}
        if self.form.reference_kind:
            attributes["reference_kind"] = self.form.reference_kind
        if self.column_names:
            attributes["label_columns"] = json.dumps(self.column_names, sort_keys=True)
        return attributes

    def encode(self, examples: Sequence[Example], progress: Any) -> EncodedSplit:
        encode: Callable[[Sequence[Example], Any], EncodedSplit] = {
            "seq2seq": self._seq2seq,
            "causal_lm": self._blocks if self.options.blocks else self._causal,
            "multiple_choice": self._choices,
            images.TASK: self._images,
        }.get(self.task, self._labelled)
        return encode(examples, progress)

    def _labelled(self, examples: Sequence[Example], progress: Any) -> EncodedSplit:
        texts, pairs = [example.text for example in examples], [example.pair for example in examples]
        rows = self.reader.encode(texts, pairs if pairs[0] is not None else None, self.options.max_length, progress)
        examples, groups = self._usable(examples, [[row] for row in rows])
        values = [example.label for example in examples]
        arrays = {"labels": labels.to_array(self.task, self.names, values)}
        arrays["token_type_ids"] = np.concatenate([row.type_ids for row in _firsts(groups)])
        for index, (column, names) in enumerate(self.column_names.items()):
            more = [example.more_labels[index] for example in examples]
            arrays[f"labels_{column}"] = labels.to_array(self.task, names, more)
        if self.task == "regression":
            about = f"{min(values):g} to {max(values):g}, mean {np.mean(values):.4g}"
        else:
            about = self._about_classes(values)
        return _encoded(examples, groups, _firsts(groups), arrays, about)

    def _about_classes(self, values: Sequence[Any]) -> str:
        counts = Counter(name for value in values for name in (value if isinstance(value, list) else [value]))
        about = ", ".join(f"{name} {counts[name]}" for name in self.names[:8])
        return about + (", ..." if len(self.names) > 8 else "")

    def _images(self, examples: Sequence[Example], progress: Any) -> EncodedSplit:
        # Looked at here, and decoded again as the file is written: all of them may be more than memory holds.
        usable: list[Example] = []
        for example in examples:
            try:
                self.reader.decode(example.text)
                usable.append(example)
            except ValueError as error:
                self.problems.add(example.place.error(str(error)))
            progress.update(1)
        self._require_usable(usable)
        values = [example.label for example in usable]
        id_bytes, id_offsets = store.ragged_text([example.id for example in usable])
        shape = (len(usable), *self.reader.shape)
        arrays: dict[str, store.Array] = {
            "pixels": store.StreamedArray(shape, np.dtype(np.uint8), lambda: self._pixels(usable)),
            "labels": labels.to_array("classification", self.names, values),
            "id_bytes": id_bytes,
            "id_offsets": id_offsets,
        }
        return EncodedSplit(arrays, len(usable), np.zeros(1, dtype=np.int64), 0, self._about_classes(values))

    def _pixels(self, examples: Sequence[Example]) -> Iterator[np.ndarray]:
        for example in examples:
            try:
                pixels = self.reader.decode(example.text)
            except ValueError as error:
                raise example.place.error(f"{error}; it was another file a moment ago: leave the images alone meanwhile") from None
            yield pixels

    def _seq2seq(self, examples: Sequence[Example], progress: Any) -> EncodedSplit:
        encode, options = self.reader.encode, self.options
        if self.features is not None:
            examples = self._with_images(examples)
        sources = encode([example.text for example in examples], None, options.max_length, progress)
        targets = encode([example.target for example in examples], None, options.max_target_length, progress)
        examples, groups = self._usable(examples, [list(pair) for pair in zip(sources, targets, strict=True)])
        ids, offsets = store.ragged([target.ids for _, target in groups])
        about = f"{len(ids)} target tokens, longest {np.diff(offsets).max()}"
        arrays: dict[str, store.Array] = {"target_ids": ids, "target_offsets": offsets} | _references(examples)
        if self.features is not None:
            found = [[self.features.find(names) for names in example.images] for example in examples]
            arrays |= self.features.arrays(found)
            about += f", {arrays['vis_feats'].shape[0]} images"
        return _encoded(examples, groups, _firsts(groups), arrays, about)

    def _with_images(self, examples: Sequence[Example]) -> list[Example]:
        """Those whose features are all there; the others are named."""
        usable = []
        for example in examples:
            try:
                for names in example.images:
                    self.features.find(names)
                usable.append(example)
            except ValueError as error:
                self.problems.add(example.place.error(str(error)))
        self._require_usable(usable)
        return usable

    def _causal(self, examples: Sequence[Example], progress: Any) -> EncodedSplit:
        prompts = [example.text for example in examples]
        has_answers = examples[0].target is not None
        answers = [self.options.answer_prefix + example.target for example in examples] if has_answers else None
        rows = self.reader.encode_continuations(prompts, answers, self.options.max_length, True, progress)
        examples, groups = self._usable(examples, [[row] for row in rows])
        rows = _firsts(groups)
        learns_all = has_answers and self.options.loss == "all"
        num_learned = sum(len(row.ids) - (0 if learns_all else row.prompt_length) for row in rows)
        arrays = {"prompt_lengths": _prompt_lengths(rows)}
        if learns_all:
            arrays["loss_mask"] = np.ones(num_learned, dtype=np.uint8)
        return _encoded(examples, groups, rows, arrays, f"loss on {num_learned} tokens")

    def _blocks(self, examples: Sequence[Example], progress: Any) -> EncodedSplit:
        texts = [example.text for example in examples]
        rows = self.reader.encode_blocks(texts, self.options.max_length, progress)
        blocks = [Example(examples[0].place, str(index), "") for index in range(len(rows))]
        arrays = {"prompt_lengths": _prompt_lengths(rows)}
        return _encoded(blocks, [[row] for row in rows], rows, arrays, f"blocks of {len(examples)} texts")

    def _choices(self, examples: Sequence[Example], progress: Any) -> EncodedSplit:
        prompts = [example.text for example in examples for _ in example.choices]
        answers = [self.options.answer_prefix + choice for example in examples for choice in example.choices]
        flat = iter(self.reader.encode_continuations(prompts, answers, self.options.max_length, False, progress))
        examples, groups = self._usable(examples, [[next(flat) for _ in example.choices] for example in examples])
        rows = [row for group in groups for row in group]
        arrays = {
            "prompt_lengths": _prompt_lengths(rows),
            "choice_offsets": np.cumsum([0, *(len(group) for group in groups)], dtype=np.int64),
            "labels": np.asarray([example.label for example in examples], dtype=np.int64),
        }
        return _encoded(examples, groups, rows, arrays, f"{len(rows)} choices")

    def _usable(
        self, examples: Sequence[Example], groups: Sequence[list[Tokens]]
    ) -> tuple[list[Example], list[list[Tokens]]]:
        """Those that nothing is wrong with; the others are named. A group is all that one example became."""
        usable = []
        for example, group in zip(examples, groups, strict=True):
            problem = next((row.problem for row in group if row.problem is not None), None)
            if problem is None and self.options.too_long == "refuse" and any(row.is_cut for row in group):
                problem = (
                    "expected a row that is not too long, found more tokens than --max-length, --max-target-length"
                )
            if problem is None:
                usable.append((example, group))
            else:
                self.problems.add(example.place.error(problem))
        self._require_usable(usable)
        return [example for example, _ in usable], [group for _, group in usable]

    def _require_usable(self, usable: Sequence[Any]) -> None:
        self.problems.require_none()
        if not usable:
            raise InputError("expected at least one usable row in every split, found none")


def _encoded(
    examples: Sequence[Example],
    groups: Sequence[list[Tokens]],
    rows: Sequence[Tokens],
    arrays: dict[str, store.Array],
    about: str,
) -> EncodedSplit:
    """`rows` are the inputs of all groups."""
    input_ids, input_offsets = store.ragged([row.ids for row in rows])
    id_bytes, id_offsets = store.ragged_text([example.id for example in examples])
    arrays |= {"input_ids": input_ids, "input_offsets": input_offsets, "id_bytes": id_bytes, "id_offsets": id_offsets}
    num_truncated = sum(any(row.is_cut for row in group) for group in groups)
    return EncodedSplit(arrays, len(examples), np.diff(input_offsets), num_truncated, about)


def _references(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """What generated texts are scored against; nothing where it is the target alone."""
    if not any(example.references for example in examples):
        return {}
    texts = [text for example in examples for text in example.references]
    reference_bytes, reference_offsets = store.ragged_text(texts)
    rows = np.cumsum([0, *(len(example.references) for example in examples)], dtype=np.int64)
    arrays = {
        "reference_bytes": reference_bytes,
        "reference_offsets": reference_offsets,
        "reference_row_offsets": rows,
    }
    if scores := [score for example in examples for score in example.scores]:
        arrays["reference_scores"] = np.asarray(scores, dtype=np.float32)
    return arrays


def _firsts(groups: Sequence[list[Tokens]]) -> list[Tokens]:
    return [group[0] for group in groups]


def _prompt_lengths(rows: Sequence[Tokens]) -> np.ndarray:
    return np.asarray([row.prompt_length for row in rows], dtype=np.int64)
