# SPDX-License-Identifier: Apache-2.0
"""Texts that stand for classes or numbers (GLUE with the templates of T5): the metrics of train/metrics.cpp from words.
A text that is no class is a wrong guess of none of them; one that is no number is -1, as in T5's own code."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Metrics = dict[str, float | int]


def class_metrics(texts: Sequence[str], targets: Sequence[str], names: Sequence[str]) -> Metrics:
    """Accuracy, F1 (of class 1 where there are two, else the mean over classes) and Matthews correlation."""
    index = {name: position for position, name in enumerate(names)}
    confusion = np.zeros((len(names) + 1, len(names) + 1))  # [truth, guess]; the last guess is no class
    for text, target in zip(texts, targets, strict=True):
        confusion[index[target], index.get(text.strip(), len(names))] += 1
    actual, guessed = confusion.sum(axis=1), confusion.sum(axis=0)
    hits = np.diag(confusion)
    f1 = [2 * hits[k] / (actual[k] + guessed[k]) if actual[k] + guessed[k] else 0.0 for k in range(len(names))]
    return {
        "accuracy": float(hits.sum() / len(texts)),
        "f1": float(f1[1] if len(names) == 2 else np.mean(f1)),
        "matthews": _matthews(confusion),
        "unmatched": int(guessed[-1]),
    }


def _matthews(confusion: np.ndarray) -> float:
    """Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004."""
    actual, guessed, total = confusion.sum(axis=1), confusion.sum(axis=0), confusion.sum()
    spread = math.sqrt((total**2 - (guessed**2).sum()) * (total**2 - (actual**2).sum()))
    return float((np.trace(confusion) * total - (actual * guessed).sum()) / spread) if spread else 0.0


def to_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def number_metrics(texts: Sequence[str], targets: Sequence[float]) -> Metrics:
    """Pearson and Spearman correlation."""
    found = [to_number(text) for text in texts]
    guesses = np.asarray([-1.0 if number is None else number for number in found])
    truths = np.asarray(targets, dtype=float)
    return {
        "pearson": _pearson(guesses, truths),
        "spearman": _pearson(_ranks(guesses), _ranks(truths)),
        "unmatched": found.count(None),
    }


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    spread = math.sqrt(float((x * x).sum() * (y * y).sum()))
    return float((x * y).sum() / spread) if spread else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """Equal values share the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[group]
