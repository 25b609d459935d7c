# SPDX-License-Identifier: Apache-2.0
"""Text -> token ids, with the tokenizer.json of a model folder and nothing but the `tokenizers` package.

Padding and truncation saved inside tokenizer.json belong to whoever saved it: both are switched off, and the truncation
asked for here takes their place. It shortens the longer text of a pair first and keeps the special tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from .errors import InputError

_BATCH_ROWS = 1024


@dataclass
class EncodedSplit:
    """Ragged arrays of one split: row r is input_ids[input_offsets[r] : input_offsets[r + 1]]."""

    input_ids: np.ndarray  # int32 [tokens]
    input_offsets: np.ndarray  # int64 [rows + 1]
    token_type_ids: np.ndarray  # uint8 [tokens]
    num_truncated: int


@dataclass
class TextEncoder:
    """A tokenizer folder, ready to encode."""

    folder: Path
    max_length: int
    pad_token_id: int
    vocab_size: int
    digest: str
    names_token_types: bool | None  # what tokenizer_config.json says, if it says
    _tokenizer: Tokenizer = field(repr=False)

    @classmethod
    def open(cls, folder: Path, max_length: int, pad_token_id: int | None) -> TextEncoder:
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise InputError(
                f"{folder}: expected a tokenizer folder with tokenizer.json, found none; "
                "save the tokenizer once with transformers' save_pretrained() to get it"
            )
        content = file.read_bytes()
        try:
            tokenizer = Tokenizer.from_str(content.decode("utf-8"))
        except Exception as error:  # the package raises bare Exception
            raise InputError(
                f"{file}: expected a tokenizer in the format of the `tokenizers` package ({error})"
            ) from None
        described = json.loads(content)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        num_special = tokenizer.num_special_tokens_to_add(is_pair=True)
        if max_length <= num_special:
            raise InputError(
                f"--max-length: expected more than the {num_special} special tokens of a pair, found {max_length}"
            )
        tokenizer.enable_truncation(max_length, strategy="longest_first")

        config = _read_json(folder / "tokenizer_config.json")
        model_inputs = config.get("model_input_names")
        vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        pad = pad_token_id if pad_token_id is not None else _find_pad_token(folder, tokenizer, described, config)
        if not 0 <= pad < vocab_size:
            raise InputError(
                f"{folder}: expected a padding token id in [0, {vocab_size}), found {pad}; give --pad-token-id"
            )
        return cls(
            folder,
            max_length,
            pad,
            vocab_size,
            "sha256:" + hashlib.sha256(content).hexdigest(),
            None if model_inputs is None else "token_type_ids" in model_inputs,
            tokenizer,
        )

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None, progress: Any) -> EncodedSplit:
        """Encodes rows in order; `progress.update(n)` is told of every n rows done."""
        ids: list[np.ndarray] = []
        types: list[np.ndarray] = []
        lengths = np.zeros(len(texts) + 1, dtype=np.int64)
        num_truncated = 0
        for begin in range(0, len(texts), _BATCH_ROWS):
            end = min(begin + _BATCH_ROWS, len(texts))
            batch = (
                list(texts[begin:end]) if pairs is None else list(zip(texts[begin:end], pairs[begin:end], strict=True))
            )
            for row, encoding in enumerate(self._tokenizer.encode_batch(batch), start=begin):
                ids.append(np.asarray(encoding.ids, dtype=np.int32))
                types.append(np.asarray(encoding.type_ids, dtype=np.uint8))
                lengths[row + 1] = len(encoding.ids)
                num_truncated += bool(encoding.overflowing)
            progress.update(end - begin)
        empty_ids, empty_types = np.zeros(0, np.int32), np.zeros(0, np.uint8)
        return EncodedSplit(
            np.concatenate(ids or [empty_ids]),
            np.cumsum(lengths),
            np.concatenate(types or [empty_types]),
            num_truncated,
        )


def _find_pad_token(folder: Path, tokenizer: Tokenizer, described: dict[str, Any], config: dict[str, Any]) -> int:
    token = config.get("pad_token")
    if isinstance(token, dict):
        token = token.get("content")
    if isinstance(token, str) and tokenizer.token_to_id(token) is not None:
        return tokenizer.token_to_id(token)
    if described.get("padding"):
        return int(described["padding"]["pad_id"])
    model_pad = _read_json(folder / "config.json").get("pad_token_id")
    if isinstance(model_pad, int):
        return model_pad
    raise InputError(
        f"{folder}: found no padding token in tokenizer_config.json, tokenizer.json or config.json; "
        "give --pad-token-id (any id will do, padded positions are masked)"
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: expected JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object")
    return value
