# SPDX-License-Identifier: Apache-2.0
"""Which split a row belongs to: given by its file, by a column, by a hash of a column, or by a rule of the papers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from .errors import InputError, shorten
from .rows import Row

SPLITS = ("train", "validation", "test")
NUM_HELD_OUT = 1000

T = TypeVar("T")
Parts = dict[str, list[T]]  # rows by split, in file order


def hash_split(prefix: str, key: str) -> str:
    """The first 8 hex digits of SHA-256 of prefix + key, modulo 10: 8 is validation, 9 is test, the rest is train."""
    bucket = int(hashlib.sha256((prefix + key).encode("utf-8")).hexdigest()[:8], 16) % 10
    return {8: "validation", 9: "test"}.get(bucket, "train")


def split_of(row: Row, column: str, hash_prefix: str | None) -> str:
    """The split that a column names, or that its hash gives."""
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise row.place.error(f"expected text or a whole number in column {column!r} (split), found {shorten(value)}")
    if hash_prefix is not None:
        return hash_split(hash_prefix, value)
    if value not in SPLITS:
        raise row.place.error(f"expected a split out of {list(SPLITS)} in column {column!r}, found {shorten(value)}")
    return value


def permutation(size: int, seed: int) -> list[int]:
    """torch.randperm(size) with a generator of this seed, which the papers' code draws its splits with: the same
    generator (MT19937) and the same shuffle, so that the same rows are held out."""
    draws = np.random.RandomState(seed)._bit_generator.random_raw(max(size - 1, 0))
    order = list(range(size))
    for place, draw in enumerate(draws):
        other = place + int(draw) % (size - place)
        order[place], order[other] = order[other], order[place]
    return order


def published(parts: Parts[T], seed: int) -> Parts[T]:
    """As published. A second validation set (MNLI mismatched) is kept as test."""
    return _renamed(parts, {"validation_mismatched": "test"})


def mismatched(parts: Parts[T], seed: int) -> Parts[T]:
    """Validation on the mismatched set, test on the matched."""
    if "validation_mismatched" not in parts:
        raise InputError(f"--split-rule: expected a mismatched validation set, found the splits {list(parts)}")
    return _renamed(parts, {"validation": "test", "validation_mismatched": "validation"})


def halve_validation(parts: Parts[T], seed: int) -> Parts[T]:
    """The first half of a permutation of the validation rows stays validation, the second becomes test."""
    _expect_train_and_validation(parts)
    rows = parts["validation"]
    order = permutation(len(rows), seed)
    half = len(rows) // 2
    return parts | {"validation": _chosen(rows, order[:half]), "test": _chosen(rows, order[half:])}


def hold_out(parts: Parts[T], seed: int) -> Parts[T]:
    """The first 1,000 of a permutation of the training rows become validation, and the published validation test."""
    _expect_train_and_validation(parts)
    rows = parts["train"]
    if len(rows) <= NUM_HELD_OUT:
        raise InputError(f"--split-rule: expected more than {NUM_HELD_OUT} training rows, found {len(rows)}")
    order = permutation(len(rows), seed)
    return {
        "train": _chosen(rows, order[NUM_HELD_OUT:]),
        "validation": _chosen(rows, order[:NUM_HELD_OUT]),
        "test": parts["validation"],
    }


RULES: dict[str, Callable[[Parts, int], Parts]] = {
    "published": published,
    "mismatched": mismatched,
    "halve-validation": halve_validation,
    "hold-out": hold_out,
}


def _renamed(parts: Parts[T], names: dict[str, str]) -> Parts[T]:
    return {names.get(name, name): rows for name, rows in parts.items()}


def _chosen(rows: list[T], order: list[int]) -> list[T]:
    return [rows[index] for index in sorted(order)]


def _expect_train_and_validation(parts: Parts[T]) -> None:
    if set(parts) != {"train", "validation"}:
        raise InputError(
            f"--split-rule: expected train and validation rows to make a test split of, found {list(parts)}"
        )
