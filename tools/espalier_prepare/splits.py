# SPDX-License-Identifier: Apache-2.0
"""Which split a row belongs to: given by its file, by a column, or by a hash of a column."""

from __future__ import annotations

import hashlib

from .errors import shorten
from .rows import Row

SPLITS = ("train", "validation", "test")


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
