# SPDX-License-Identifier: Apache-2.0
"""Writes the dataset file. The grammar is docs/dataset_format.md; the reader is data/dataset.cpp."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .errors import InputError

# Raised when an old reader would misread a new file; docs/dataset_format.md lists the versions.
FORMAT_VERSION = 1


@dataclass(frozen=True)
class StreamedArray:
    """An array that is larger than memory, written block by block along its first dimension."""

    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: Callable[[], Iterator[np.ndarray]]


Array = np.ndarray | StreamedArray


def ragged(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids one after the other (int32), and row offsets (int64)."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return np.concatenate(rows).astype(np.int32, copy=False), offsets


def ragged_text(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts as one run of UTF-8 bytes (uint8) and row offsets (int64)."""
    encoded = [text.encode("utf-8") for text in texts]
    offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum([len(piece) for piece in encoded], out=offsets[1:])
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets


def write_dataset(
    path: Path, attributes: Mapping[str, str | int], splits: Mapping[str, Mapping[str, Array]]
) -> None:
    """Writes the whole file under another name and renames it: a reader sees the old file, or all of the new one."""
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{path}: the folder {folder} does not exist; make it first")
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=folder)
    os.close(handle)
    try:
        with h5py.File(temporary, "w") as file:
            for name, value in attributes.items():
                file.attrs[name] = np.int64(value) if isinstance(value, int) else value
            stored: dict[str, list[Any]] = {}
            for split, arrays in splits.items():
                group = file.create_group(split)
                for name, array in arrays.items():
                    stored[f"{split}/{name}"] = _write_array(group, name, array)
            file.attrs["content_digest"] = _content_digest(attributes, stored)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        _sync(Path(temporary))
        os.replace(temporary, path)
        _sync(folder)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _write_array(group: h5py.Group, name: str, array: Array) -> list[Any]:
    """Writes the array and returns what the digest of the content has of it: type, shape, SHA-256 of the elements."""
    digest = hashlib.sha256()
    if isinstance(array, StreamedArray):
        written = group.create_dataset(name, array.shape, array.dtype)
        for index, block in enumerate(array.blocks()):
            elements = np.ascontiguousarray(block, dtype=array.dtype)
            written[index] = elements
            digest.update(elements)
    else:
        written = group.create_dataset(name, data=array)
        digest.update(np.ascontiguousarray(array))
    return [written.dtype.str, list(written.shape), digest.hexdigest()]


def _content_digest(attributes: Mapping[str, str | int], arrays: Mapping[str, list[Any]]) -> str:
    """Of all that the file says, so that a reader need not read it whole to know it again; made while it is written."""
    content = json.dumps({"attributes": dict(attributes), "arrays": dict(arrays)}, sort_keys=True)
    return "sha256:" + hashlib.sha256(content.encode()).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
