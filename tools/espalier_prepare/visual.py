# SPDX-License-Identifier: Apache-2.0
"""Questions, statements and captions about images in their published JSON forms, as text to text with the prompts of
VL-T5. An image goes by the names that its features may have (features.py)."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError, Place, shorten
from .forms import Example, Form, id_from
from .rows import Row, Rows, read_rows


@dataclass(frozen=True)
class VisualForm(Form):
    read_file: Callable[[Path], Rows] | None = None
    read: Callable[[Row], Example] | None = None
    has_companion: bool = False

    def format_of(self, path: Path, chosen: str | None) -> str:
        return ""

    def companions(self, path: Path) -> list[Path]:
        annotations = annotations_of(path)
        return [annotations] if self.has_companion and annotations != path and annotations.is_file() else []

    def rows(self, path: Path, file_format: str) -> Rows:
        return self.read_file(path)

    def example(self, row: Row) -> Example:
        return self.read(row)

    def in_split(self, split: str, examples: Sequence[Example]) -> list[Example]:
        """Scores are of splits that are not trained on: only there references are kept."""
        if split != "train":
            return list(examples)
        return [dataclasses.replace(example, references=(), scores=()) for example in examples]


class CaptionForm(VisualForm):
    """Every caption is a row to train on; to score, an image is a row, and all its captions are references."""

    def in_split(self, split: str, examples: Sequence[Example]) -> list[Example]:
        if split != "train":
            return list(examples)
        return [
            dataclasses.replace(example, target=caption, references=())
            for example in examples
            for caption in example.references
        ]


def annotations_of(questions: Path) -> Path:
    """v2_OpenEnded_mscoco_train2014_questions.json -> v2_mscoco_train2014_annotations.json, beside it."""
    return questions.with_name(questions.name.replace("OpenEnded_", "").replace("questions", "annotations"))


def _load(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{path}: expected JSON ({error})") from None


def _list_in(path: Path, value: Any, key: str) -> list[Any]:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise InputError(f"{path}: expected JSON with a list {key!r}, found {shorten(value)}")
    return found


def _rows_of(path: Path, values: Sequence[Any]) -> Iterator[Any]:
    for number, value in enumerate(values, start=1):
        place = Place(path, number)
        yield Row(place, value, None) if isinstance(value, dict) else place.error(
            f"expected an object, found {shorten(value)}"
        )


# Visual question answering.


def _vqa_rows(path: Path) -> Rows:
    """As published, questions with their annotations beside them; or one list with answers and their scores."""
    value = _load(path)
    if isinstance(value, list):
        yield from _rows_of(path, value)
        return
    answers_file = annotations_of(path)
    if answers_file == path:
        raise InputError(f"{path}: expected a name with 'questions', whose annotations stand beside it, found another")
    annotations: dict[Any, Any] = {}
    for number, item in enumerate(_list_in(answers_file, _load(answers_file), "annotations"), start=1):
        if not isinstance(item, dict) or not isinstance(item.get("question_id"), int):
            raise Place(answers_file, number).error(f"expected an annotation with question_id, found {shorten(item)}")
        annotations[item["question_id"]] = item.get("answers")
    for row in _rows_of(path, _list_in(path, value, "questions")):
        if not isinstance(row, Row):
            yield row
            continue
        question = row.fields.get("question_id")
        if not isinstance(question, int) or question not in annotations:
            yield row.place.error(f"expected an annotation of question {question!r} in {answers_file}, found none")
            continue
        subset = value.get("data_subtype")
        yield Row(row.place, {**row.fields, "answers": annotations[question], "subset": subset}, None)


def _vqa(row: Row) -> Example:
    if row.has("label"):
        return _scored(row, "vqa")
    answers = row.get("answers")
    texts = [item.get("answer") if isinstance(item, dict) else None for item in answers or ()]
    if not isinstance(answers, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise row.place.error(f"expected a list of answers that people gave, found {shorten(answers)}")
    image = row.get("image_id")
    if not isinstance(image, int) or isinstance(image, bool):
        raise row.place.error(f"expected a whole number as image_id, found {shorten(image)}")
    names = (f"COCO_{row.get('subset')}_{image:012d}", f"{image:012d}", str(image))
    target = Counter(texts).most_common(1)[0][0]  # of equals the first
    text = "vqa: " + row.get_text("question", "question")
    return Example(
        row.place, id_from(row, "question_id"), text, target=target, images=(names,), references=tuple(texts)
    )


def _scored(row: Row, prompt: str) -> Example:
    """Answers with scores, of which the best is learned: {"sent", "img_id", "question_id", "label": {answer: score}}."""
    label = row.get("label")
    good = isinstance(label, dict) and label and all(isinstance(value, int | float) and 0 <= value <= 1 for value in label.values())
    if not good:
        raise row.place.error(f"expected answers with scores from 0 to 1 as label, found {shorten(label)}")
    return Example(
        row.place,
        id_from(row, "question_id"),
        f"{prompt}: {row.get_text('sent', 'question')}",
        target=max(label, key=label.get),
        images=((row.get_text("img_id", "image"),),),
        references=tuple(label),
        scores=tuple(float(score) for score in label.values()),
    )


def _gqa_rows(path: Path) -> Rows:
    """As published, an object of questions by id; or a list as of VQA."""
    value = _load(path)
    if isinstance(value, list):
        yield from _rows_of(path, value)
        return
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object of questions or a list, found {shorten(value)}")
    for number, (question, item) in enumerate(value.items(), start=1):
        place = Place(path, number)
        if not isinstance(item, dict):
            yield place.error(f"expected an object as question {question!r}, found {shorten(item)}")
            continue
        row = Row(place, item, None)
        try:
            fields = {"question_id": question, "img_id": row.get_text("imageId", "image"),
                      "sent": row.get_text("question", "question"), "label": {row.get_text("answer", "answer"): 1}}  # fmt: skip
            yield Row(place, fields, None)
        except InputError as error:
            yield error


# Captions.

_KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}


def _caption_rows(path: Path) -> Rows:
    """As published, or in the split of Karpathy (dataset_coco.json). A row for every image."""
    value = _load(path)
    images = _list_in(path, value, "images")
    captions: dict[Any, list[Any]] = {}
    is_karpathy = "annotations" not in value
    if not is_karpathy:
        known = {image.get("id") for image in images if isinstance(image, dict)}
        for number, item in enumerate(_list_in(path, value, "annotations"), start=1):
            image = item.get("image_id") if isinstance(item, dict) else None
            if image not in known:
                yield Place(path, number).error(f"annotations: expected the image_id of an image, found {shorten(item)}")
                continue
            captions.setdefault(image, []).append(item.get("caption"))
    for row in _rows_of(path, images):
        if not isinstance(row, Row):
            yield row
        elif is_karpathy:
            sentences = row.fields.get("sentences")
            texts = [item.get("raw") if isinstance(item, dict) else None for item in sentences or ()]
            split = _KARPATHY_SPLITS.get(row.fields.get("split"), row.fields.get("split"))
            fields = {"id": row.fields.get("cocoid"), "file": row.fields.get("filename"), "captions": texts, "split": split}
            yield Row(row.place, fields, None)
        else:
            image = row.fields.get("id")
            yield Row(row.place, {"id": image, "file": row.fields.get("file_name"), "captions": captions.get(image)}, None)


def _caption(row: Row) -> Example:
    captions = row.get("captions")
    if not captions or not all(isinstance(text, str) and text.strip() for text in captions):
        raise row.place.error(f"expected captions of image {row.get('id')!r}, found {shorten(captions)}")
    texts = tuple(text.strip() for text in captions)
    image = id_from(row, "id")
    names = (Path(row.get_text("file", "file name")).stem, image)
    return Example(row.place, image, "caption:", target=texts[0], images=(names,), references=texts)


# Statements about pairs of images.


def _pair_rows(path: Path) -> Rows:
    """JSON lines as published (in files called .json), or one list."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        is_list = file.read(64).lstrip().startswith(b"[")
    return _rows_of(path, _load(path)) if is_list else read_rows(path, "jsonl", True)


def _pair(row: Row) -> Example:
    label = str(row.get("label")).lower()
    if label not in ("true", "false", "1", "0"):
        raise row.place.error(f"expected True or False as label, found {shorten(row.get('label'))}")
    identifier = row.get_text("identifier", "id")
    stem = identifier.rpartition("-")[0]  # without the number of the sentence
    names = [row.get_text(key, "image") if row.has(key) else f"{stem}-{key}" for key in ("img0", "img1")]
    return Example(
        row.place,
        identifier,
        "nlvr: " + row.get_text(row.pick(("sentence", "sent"), "statement"), "statement"),
        target="true" if label in ("true", "1") else "false",
        images=tuple((name,) for name in names),
    )


_TASKS = ("seq2seq",)

FORMS: dict[str, VisualForm] = {
    "vqa": VisualForm(
        _TASKS,
        {
            "train": ("v2_OpenEnded_mscoco_train2014_questions.json", "train.json"),
            "validation": ("v2_OpenEnded_mscoco_val2014_questions.json", "minival.json", "valid.json"),
        },
        reference_kind="answers",
        read_file=_vqa_rows,
        read=_vqa,
        has_companion=True,
    ),
    "gqa": VisualForm(
        _TASKS,
        {
            "train": ("train_balanced_questions.json", "train.json"),
            "validation": ("val_balanced_questions.json", "valid.json"),
            "test": ("testdev_balanced_questions.json", "testdev.json"),
        },
        reference_kind="answers",
        read_file=_gqa_rows,
        read=lambda row: _scored(row, "gqa"),
    ),
    "coco": CaptionForm(
        _TASKS,
        {
            "train": ("captions_train2014.json", "captions_train2017.json"),
            "validation": ("captions_val2014.json", "captions_val2017.json"),
        },
        reference_kind="texts",
        read_file=_caption_rows,
        read=_caption,
    ),
    "nlvr2": VisualForm(
        _TASKS,
        {"train": ("train.json",), "validation": ("dev.json", "valid.json"), "test": ("test1.json", "test.json")},
        class_texts=("false", "true"),
        read_file=_pair_rows,
        read=_pair,
    ),
}
