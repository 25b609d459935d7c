# SPDX-License-Identifier: Apache-2.0
"""The lines that `espalier generate` wrote -> one text per row, decoded with the tokenizer of the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espalier_prepare.errors import InputError, shorten
from espalier_prepare.rows import read_rows
from tokenizers import Tokenizer


class Decoder:
    """Token ids -> text without special tokens and surrounding space."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "tokenizer.json"
        if not self._path.is_file():
            raise InputError(f"{self._path}: no such file; --tokenizer takes the folder of the model")
        try:
            self._tokenizer = Tokenizer.from_file(str(self._path))
        except Exception as error:  # the package raises bare Exceptions
            raise InputError(f"{self._path}: expected a tokenizer ({error})") from None
        self.digest = "sha256:" + hashlib.sha256(self._path.read_bytes()).hexdigest()

    def decode(self, ids: Sequence[int]) -> str:
        # The tokenizer leaves out unknown ids in silence. Models pad their vocabulary, so that such an id can be drawn.
        return self._tokenizer.decode(list(ids), skip_special_tokens=True).strip()


def read_generated(path: Path, decoder: Decoder | None) -> dict[int, str]:
    """Text by row. A line may hold the text itself, as --text-output writes it."""
    texts: dict[int, str] = {}
    for line in read_rows(path, "jsonl", True):
        if isinstance(line, InputError):
            raise line
        row = line.get("row")
        if not _is_index(row):
            raise line.place.error(f"expected a whole number from 0 as row, found {shorten(row)}")
        if row in texts:
            raise line.place.error(f"expected every row once, found row {row} again")
        if line.has("text") and not line.has("token_ids"):
            text = line.get("text")
            if not isinstance(text, str):
                raise line.place.error(f"expected a text, found {shorten(text)}")
            texts[row] = text
            continue
        ids = line.get("token_ids")
        if not isinstance(ids, list) or not all(_is_index(token) and token < 2**32 for token in ids):
            raise line.place.error(f"expected a list of token ids, found {shorten(ids)}")
        if decoder is None:
            raise InputError(f"{path}: expected --tokenizer to make texts of token ids, found none")
        texts[row] = decoder.decode(ids)
    if not texts:
        raise InputError(f"{path}: expected at least one generated row, found none")
    return texts


def write_texts(path: Path, texts: dict[int, str], ids: Sequence[str] | None) -> None:
    """One line per row, in order; ids are those of the dataset."""
    with path.open("w", encoding="utf-8") as file:
        for row in sorted(texts):
            line: dict[str, Any] = {"row": row} | ({} if ids is None else {"id": ids[row]}) | {"text": texts[row]}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
