# SPDX-License-Identifier: Apache-2.0
"""What the tests of tools/prepare.py share: a tokenizer of one id per word, runs of the program, and a look inside."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import unittest
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))
from espalier_prepare.command import main  # noqa: E402

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e", "f", "g", "h"]
PAD, UNK, CLS, SEP = range(4)
EOS = len(WORDS)


def ids_of(text: str) -> list[int]:
    """The oracle of the tokenizer below: one id per word."""
    return [WORDS.index(word) if word in WORDS else UNK for word in text.split()]


def save_tokenizer(folder: Path, *, pads: bool = True, words: Sequence[str] = (), template: str = "bert") -> None:
    """`template`: the special tokens of BERT, of T5 ("a </s>"), of OPT ("</s> a") or none, as GPT-2."""
    vocabulary = [*WORDS, "</s>", *(word for word in dict.fromkeys(words) if word not in WORDS)]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template == "bert":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
        )
    elif template != "gpt2":
        tokenizer.post_processor = processors.TemplateProcessing(
            single={"t5": "$A </s>", "opt": "</s> $A"}[template], special_tokens=[("</s>", EOS)]
        )
    if pads:
        # As published tokenizers often are: with somebody's padding and truncation inside.
        tokenizer.enable_padding(pad_id=PAD, pad_token="[PAD]", length=20)
        tokenizer.enable_truncation(5)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if template != "bert":
        (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')


class PrepareTest(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)
        self.tokenizer = self.folder / "tokenizer"
        save_tokenizer(self.tokenizer)
        self.output = self.folder / "out.h5"

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def prepare(self, *arguments: object) -> tuple[int, str, str]:
        return self.run_main("--tokenizer", self.tokenizer, *arguments)

    def run_main(self, *arguments: object) -> tuple[int, str, str]:
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                code = main(["--output", str(self.output), *map(str, arguments)])
            except SystemExit as error:  # argparse
                code = int(error.code)
        return code, stdout.getvalue(), stderr.getvalue()

    def prepared(self, *arguments: object) -> str:
        code, stdout, stderr = self.prepare(*arguments)
        self.assertEqual(code, 0, stderr)
        return stdout

    def refused(self, *arguments: object) -> str:
        code, stdout, stderr = self.prepare(*arguments)
        self.assertEqual(code, 2, stdout + stderr)
        self.assertFalse(self.output.exists())
        self.assertEqual(list(self.folder.glob(".*.tmp")), [])
        return stderr

    def rows(self, split: str, array: str = "input_ids", offsets_of: str = "input_offsets") -> list[list[int]]:
        with h5py.File(self.output) as file:
            offsets = file[split][offsets_of][:]
            flat = file[split][array][:]
        return [flat[begin:end].tolist() for begin, end in zip(offsets[:-1], offsets[1:], strict=True)]

    def ids(self, split: str) -> list[str]:
        with h5py.File(self.output) as file:
            content, offsets = file[split]["id_bytes"][:].tobytes(), file[split]["id_offsets"][:]
        return [content[begin:end].decode() for begin, end in zip(offsets[:-1], offsets[1:], strict=True)]

    def labels(self, split: str) -> np.ndarray:
        return self.array(split, "labels")

    def array(self, split: str, name: str) -> np.ndarray:
        with h5py.File(self.output) as file:
            return file[split][name][:]

    def arrays(self, split: str) -> set[str]:
        with h5py.File(self.output) as file:
            return set(file[split])

    def attribute(self, name: str) -> object:
        with h5py.File(self.output) as file:
            return file.attrs[name]

    def words(self, split: str, array: str = "input_ids", offsets_of: str = "input_offsets") -> list[str]:
        """The rows as text, special tokens included."""
        tokenizer = Tokenizer.from_file(str(self.tokenizer / "tokenizer.json"))
        return [" ".join(tokenizer.id_to_token(token) for token in row) for row in self.rows(split, array, offsets_of)]

    def expect(self, stderr: str, *pieces: str) -> None:
        for piece in pieces:
            self.assertIn(piece, stderr)
