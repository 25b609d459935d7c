# SPDX-License-Identifier: Apache-2.0
"""Text -> token ids, with the tokenizer.json of a model folder and nothing but the `tokenizers` package.

Padding and truncation saved inside tokenizer.json belong to whoever saved it: both are switched off, and the truncation
asked for here takes their place. It shortens the longer text of a pair first, a prompt at its start rather than its
answer, and keeps the special tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from .errors import InputError

_BATCH_ROWS = 1024
_PIECE_CHARACTERS = 1 << 20
_NO_TOKEN = "expected a text with at least one token, found none"


@dataclass(slots=True)
class Tokens:
    """The ids of one row."""

    ids: np.ndarray  # int32 [tokens]
    type_ids: np.ndarray | None = None  # uint8 [tokens]
    prompt_length: int = 0  # tokens that are given, before those to learn
    is_cut: bool = False  # to the greatest length
    problem: str | None = None  # why the row cannot be used


@dataclass
class TextEncoder:
    """A tokenizer folder, ready to encode."""

    folder: Path
    pad_token_id: int
    eos_token_id: int | None
    vocab_size: int
    digest: str
    names_token_types: bool | None  # what tokenizer_config.json says, if it says
    _tokenizer: Tokenizer = field(repr=False)

    @classmethod
    def open(cls, folder: Path, pad_token_id: int | None, eos_token_id: int | None) -> TextEncoder:
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
        config = _read_json(folder / "tokenizer_config.json")
        model_inputs = config.get("model_input_names")
        vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        pad = pad_token_id if pad_token_id is not None else _find_pad_token(folder, tokenizer, described, config)
        eos = eos_token_id if eos_token_id is not None else _find_token(folder, tokenizer, config, "eos")
        for role, option, token in (("padding", "--pad-token-id", pad), ("end", "--eos-token-id", eos)):
            if token is not None and not 0 <= token < vocab_size:
                raise InputError(
                    f"{folder}: expected a {role} token id in [0, {vocab_size}), found {token}; give {option}"
                )
        return cls(
            folder,
            pad,
            eos,
            vocab_size,
            "sha256:" + hashlib.sha256(content).hexdigest(),
            None if model_inputs is None else "token_type_ids" in model_inputs,
            tokenizer,
        )

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int, progress: Any) -> list[Tokens]:
        """Rows in order, with the special tokens, cut to `max_length`; `progress.update(n)` hears of every n done."""
        num_special = self._tokenizer.num_special_tokens_to_add(is_pair=pairs is not None)
        if max_length <= num_special:
            raise InputError(
                f"--max-length and --max-target-length: expected more than the {num_special} special tokens of a "
                f"row, found {max_length}"
            )
        self._tokenizer.enable_truncation(max_length, strategy="longest_first")
        rows = texts if pairs is None else list(zip(texts, pairs, strict=True))
        tokens = [
            Tokens(
                np.asarray(encoding.ids, dtype=np.int32),
                np.asarray(encoding.type_ids, dtype=np.uint8),
                is_cut=bool(encoding.overflowing),
                problem=None if encoding.ids else _NO_TOKEN,
            )
            for encoding in self._batches(rows, progress)
        ]
        self._tokenizer.no_truncation()
        return tokens

    def encode_continuations(
        self, prompts: Sequence[str], answers: Sequence[str] | None, max_length: int, ends: bool, progress: Any
    ) -> list[Tokens]:
        """Prompt and answer as one text each, so that no token is split where they meet; what reaches into the answer
        belongs to it. `ends`: the end token follows. A row that is too long loses the start of its prompt (special
        tokens stay), or without answer its own end."""
        whole = prompts if answers is None else [a + b for a, b in zip(prompts, answers, strict=True)]
        rows = []
        for prompt, encoding in zip(prompts, self._batches(whole, progress), strict=True):
            ids = list(encoding.ids)
            length = 0
            if answers is not None:
                inside = (index for index, (_, end) in enumerate(encoding.offsets) if end > len(prompt))
                length = next(inside, len(ids))
            if length == len(ids):
                problem = _NO_TOKEN if answers is None else "expected an answer with a token, found none"
                rows.append(Tokens(np.zeros(0, np.int32), problem=problem))
                continue
            if ends and ids[-1] != self.end_token():
                ids.append(self.end_token())
            rows.append(self._shorten(ids, length, max_length, encoding.special_tokens_mask, answers is not None))
        return rows

    def _shorten(
        self, ids: list[int], prompt_length: int, max_length: int, is_special: Sequence[int], has_answer: bool
    ) -> Tokens:
        excess = len(ids) - max_length
        problem = None
        if excess > 0 and has_answer:
            first = next((index for index, special in enumerate(is_special) if not special), 0)
            if excess > prompt_length - first:
                fits = max_length - first
                problem = f"expected an answer of at most {fits} tokens, found {len(ids) - prompt_length}"
            ids = ids[:first] + ids[first + excess :]
            prompt_length -= excess
        elif excess > 0:
            ids = ids[:max_length]
        elif len(ids) < 2:
            problem = "expected a text of at least two tokens: one to go on from, one to learn; found one"
        return Tokens(np.asarray(ids, dtype=np.int32), None, prompt_length, excess > 0, problem)

    def encode_blocks(self, texts: Sequence[str], length: int, progress: Any) -> list[Tokens]:
        """The texts one after the other, an end token after each and no other special tokens, in blocks of `length`.
        The last block may be shorter, but never one token, which teaches nothing. Requires: length > 3."""
        end = np.asarray([self.end_token()], dtype=np.int32)
        pieces = []
        for text in texts:
            batches = self._batches(_pieces(text), _Silent(), add_special_tokens=False)
            pieces.extend(np.asarray(encoding.ids, dtype=np.int32) for encoding in batches)
            pieces.append(end)
            progress.update(1)
        stream = np.concatenate(pieces)
        if len(stream) < 2:
            raise InputError("--blocks: expected a text with a token in every split, found none")
        cuts = list(range(length, len(stream), length))
        if cuts and len(stream) - cuts[-1] == 1:
            cuts[-1] -= 1
        return [Tokens(block) for block in np.split(stream, cuts)]

    def end_token(self) -> int:
        if self.eos_token_id is None:
            raise InputError(
                f"{self.folder}: found no end token in tokenizer_config.json or config.json; give --eos-token-id"
            )
        return self.eos_token_id

    def _batches(self, rows: Sequence[Any], progress: Any, add_special_tokens: bool = True) -> Iterator[Any]:
        for begin in range(0, len(rows), _BATCH_ROWS):
            batch = list(rows[begin : begin + _BATCH_ROWS])
            yield from self._tokenizer.encode_batch(batch, add_special_tokens=add_special_tokens)
            progress.update(len(batch))


class _Silent:
    def update(self, count: int) -> None:
        pass


def _pieces(text: str) -> list[str]:
    """A long text in pieces that fit into memory as tokens. It is cut where a line starts with a visible character:
    byte-level tokenizers cut there anyway."""
    pieces = []
    begin = 0
    for match in re.finditer(r"\n(?=\S)", text):
        if match.end() - begin >= _PIECE_CHARACTERS:
            pieces.append(text[begin : match.end()])
            begin = match.end()
    return [*pieces, text[begin:]]


def _find_pad_token(folder: Path, tokenizer: Tokenizer, described: dict[str, Any], config: dict[str, Any]) -> int:
    token = _find_token(folder, tokenizer, config, "pad", described.get("padding"))
    if token is None:
        raise InputError(
            f"{folder}: found no padding token in tokenizer_config.json, tokenizer.json or config.json; "
            "give --pad-token-id (any id will do, padded positions are masked)"
        )
    return token


def _find_token(
    folder: Path, tokenizer: Tokenizer, config: dict[str, Any], role: str, padding: dict[str, Any] | None = None
) -> int | None:
    token = config.get(f"{role}_token")
    if isinstance(token, dict):
        token = token.get("content")
    if isinstance(token, str) and tokenizer.token_to_id(token) is not None:
        return tokenizer.token_to_id(token)
    if padding:
        return int(padding["pad_id"])
    token = _read_json(folder / "config.json").get(f"{role}_token_id")
    if isinstance(token, list) and token:  # several end tokens: the first is the one to write
        token = token[0]
    return token if isinstance(token, int) else None


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
