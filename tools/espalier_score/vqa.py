# SPDX-License-Identifier: Apache-2.0
"""The accuracy of VQA (Antol et al., ICCV 2015): an answer is right as far as three of the other people gave it. Texts
are made alike as the published code does, but for its table of contractions: apostrophes are left out instead."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBERS = "zero one two three four five six seven eight nine ten".split()
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


def normalise(answer: str) -> str:
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    has_thousands = re.search(r"\d,\d", text) is not None
    out = text
    for mark in _PUNCTUATION:
        is_apart = f"{mark} " in text or f" {mark}" in text or has_thousands
        out = out.replace(mark, "" if is_apart else " ")
    out = re.sub(r"(?<!\d)\.|\.(?!\d)", "", out).replace("'", "")
    words = [_DIGITS.get(word, word) for word in out.lower().split()]
    return " ".join(word for word in words if word not in _ARTICLES)


def vqa_accuracy(text: str, answers: Sequence[str]) -> float:
    """The mean over all ways to leave one person out, of min(1, agreeing others / 3)."""
    own = normalise(text)
    agreeing = [normalise(answer) == own for answer in answers]
    others = [sum(agreeing) - agrees for agrees in agreeing]
    return sum(min(1.0, count / 3) for count in others) / len(others)


def scored_accuracy(text: str, answers: Sequence[str], scores: Sequence[float]) -> float:
    """The score of the answer that the text is, 0 if it is none of them."""
    own = normalise(text)
    return max((score for answer, score in zip(answers, scores, strict=True) if normalise(answer) == own), default=0.0)
