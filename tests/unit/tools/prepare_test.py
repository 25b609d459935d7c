# SPDX-License-Identifier: Apache-2.0
"""tools/prepare.py on small hand-made files: what it writes, and what it refuses by file and line."""

from __future__ import annotations

import hashlib
import json
import unittest

import h5py
import numpy as np
from prepare_case import CLS, PAD, SEP, WORDS, PrepareTest, ids_of, save_tokenizer

from espalier_prepare.splits import hash_split


class WhatIsWritten(PrepareTest):
    def test_rows_keep_their_order_ids_labels_and_special_tokens(self) -> None:
        train = self.write("train.tsv", 'key\ttext\tkind\nx\ta b\tgood\n\u00fc\tc "d zzz\tbad\nz\te f g h a b\tgood\n')
        self.prepared("--train", train, "--text", "text", "--label", "kind", "--id", "key")
        self.assertEqual(self.rows("train"), [[CLS, *ids_of(text), SEP] for text in ("a b", 'c "d zzz', "e f g h a b")])
        self.assertEqual(self.ids("train"), ["x", "\u00fc", "z"])
        self.assertEqual(self.labels("train").tolist(), [1, 0, 1])
        self.assertEqual(self.labels("train").dtype, np.int64)
        with h5py.File(self.output) as file:
            self.assertEqual(file["train/input_ids"].dtype, np.int32)
            self.assertEqual(file["train/input_offsets"].dtype, np.int64)
            self.assertNotIn("token_type_ids", file["train"])
        self.assertEqual(json.loads(self.attribute("label_names")), ["bad", "good"])
        self.assertEqual(
            [
                self.attribute(name)
                for name in ("format_version", "task", "num_labels", "pad_token_id", "vocab_size", "max_length")
            ],
            [1, "classification", 2, PAD, len(WORDS) + 1, 512],
        )
        self.assertEqual(self.attribute("source_digest"), "sha256:" + hashlib.sha256(train.read_bytes()).hexdigest())
        self.assertEqual(
            self.attribute("tokenizer_digest"),
            "sha256:" + hashlib.sha256((self.tokenizer / "tokenizer.json").read_bytes()).hexdigest(),
        )

    def test_the_same_data_gives_the_same_bytes_in_another_folder(self) -> None:
        train = self.write("t.tsv", "a\t0\nb\t1\n")
        arguments = ("--no-header", "--text", 0, "--label", 1)
        self.prepared("--train", train, *arguments)
        first = self.output.read_bytes()
        self.output.unlink()
        (self.folder / "other").mkdir()
        self.output = self.folder / "other" / "other.h5"
        self.prepared("--train", train.rename(self.folder / "other" / "t.tsv"), "--quiet", *arguments)
        self.assertEqual(self.output.read_bytes(), first)

    def test_pairs_are_cut_longest_first_and_keep_their_special_tokens(self) -> None:
        texts = [("a b c d e f", "g h"), ("a b", "c d e f g"), ("a b c d", "e f g h"), ("a", "b")]
        train = self.write(
            "t.jsonl", "".join(json.dumps({"p": p, "h": h, "y": i % 2}) + "\n" for i, (p, h) in enumerate(texts))
        )
        summary = self.prepared("--train", train, "--text", "p", "--text-pair", "h", "--label", "y", "--max-length", 8)
        expected, expected_types, num_truncated = [], [], 0
        for left, right in ((ids_of(p), ids_of(h)) for p, h in texts):
            num_truncated += len(left) + len(right) > 5
            while len(left) + len(right) > 5:
                (left if len(left) >= len(right) else right).pop()  # a tie cuts the first text, as in transformers
            expected.append([CLS, *left, SEP, *right, SEP])
            expected_types.append([0] * (len(left) + 2) + [1] * (len(right) + 1))
        self.assertEqual(self.rows("train"), expected)
        self.assertEqual(self.rows("train", "token_type_ids"), expected_types)
        self.assertRegex(summary, rf"train +4 +0 +{num_truncated} ")

    def test_token_types_are_left_out_for_a_model_that_names_its_inputs_without_them(self) -> None:
        train = self.write("t.jsonl", '{"p": "a", "h": "b", "y": 0}\n{"p": "a", "h": "c", "y": 1}\n')
        arguments = ("--train", train, "--text", "p", "--text-pair", "h", "--label", "y")
        (self.tokenizer / "tokenizer_config.json").write_text('{"model_input_names": ["input_ids", "attention_mask"]}')
        self.prepared(*arguments)
        with h5py.File(self.output) as file:
            self.assertNotIn("token_type_ids", file["train"])
        self.prepared(*arguments, "--token-types", "keep")
        self.assertEqual(self.rows("train", "token_type_ids"), [[0, 0, 0, 1, 1]] * 2)

    def test_the_hash_splits_as_stated_and_keeps_the_order_of_the_file(self) -> None:
        keys = [str(number) for number in range(1, 201)]
        source = self.write("t.tsv", "".join(f"{key}\ta\t{int(key) % 2}\n" for key in keys))
        self.prepared(
            "--input",
            source,
            "--no-header",
            "--id",
            0,
            "--text",
            1,
            "--label",
            2,
            "--split-hash-prefix",
            "espalier-split:",
        )
        expected: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
        for key in keys:
            bucket = int(hashlib.sha256(b"espalier-split:" + key.encode()).hexdigest()[:8], 16) % 10
            expected["validation" if bucket == 8 else "test" if bucket == 9 else "train"].append(key)
        self.assertEqual({split: self.ids(split) for split in expected}, expected)
        self.assertEqual(
            hash_split("espalier-split:", "1"), next(split for split, found in expected.items() if "1" in found)
        )

    def test_a_column_splits(self) -> None:
        source = self.write("t.csv", 'text,y,part\na,0,train\n"b, ""c""\nd",1,test\ne,1,train\n')
        self.prepared("--input", source, "--text", "text", "--label", "y", "--split-column", "part")
        self.assertEqual(self.rows("train"), [[CLS, *ids_of("a"), SEP], [CLS, *ids_of("e"), SEP]])
        self.assertEqual(self.rows("test"), [[CLS, *ids_of('b, "c" d'), SEP]])
        self.assertEqual((self.ids("train"), self.ids("test")), (["t.csv:2", "t.csv:5"], ["t.csv:3"]))

    def test_a_document_may_be_one_field_of_a_table(self) -> None:
        text = " ".join(["a b"] * 50_000)  # the csv module's own limit is 131,072 characters
        source = self.write("t.csv", f'text,y\n"{text}",0\nc,1\n')
        self.prepared("--train", source, "--text", "text", "--label", "y", "--max-length", 200_000)
        self.assertEqual(self.rows("train"), [[CLS, *ids_of(text), SEP], [CLS, *ids_of("c"), SEP]])

    def test_ratings_become_classes_and_the_dropped_are_counted(self) -> None:
        ratings = [0.25, 0.2, -0.2, -0.25, 3, -4, 0]
        source = self.write("t.tsv", "".join(f"a\t{rating}\n" for rating in ratings))
        summary = self.prepared(
            "--train", source, "--no-header", "--text", 0, "--label", 1, "--positive-above", 0, "--drop-within", 0.25
        )
        self.assertEqual(self.labels("train").tolist(), [1, 0, 1, 0])
        self.assertEqual(json.loads(self.attribute("label_names")), ["negative", "positive"])
        self.assertRegex(summary, r"train +4 +3 ")

    def test_regression_keeps_numbers(self) -> None:
        source = self.write("t.jsonl", '{"t": "a", "y": 1}\n{"t": "b", "y": "-2.5"}\n')
        self.prepared("--train", source, "--text", "t", "--label", "y", "--task", "regression")
        self.assertEqual(self.labels("train").tolist(), [1.0, -2.5])
        self.assertEqual(self.labels("train").dtype, np.float32)
        self.assertEqual(
            (self.attribute("num_labels"), self.attribute("label_names"), self.attribute("task")),
            (1, "[]", "regression"),
        )

    def test_whole_number_labels_are_sorted_as_numbers_and_given_names_keep_their_order(self) -> None:
        source = self.write("t.tsv", "a\t10\nb\t9\nc\t-1\n")
        arguments = ("--train", source, "--no-header", "--text", 0, "--label", 1)
        self.prepared(*arguments)
        self.assertEqual(
            (self.labels("train").tolist(), json.loads(self.attribute("label_names"))), ([2, 1, 0], ["-1", "9", "10"])
        )
        self.prepared(*arguments, "--label-names", "9,10,-1,other")
        self.assertEqual((self.labels("train").tolist(), self.attribute("num_labels")), ([1, 0, 2], 4))

    def test_classes_are_shared_by_all_splits(self) -> None:
        train, test = self.write("a.tsv", "a\tx\nb\tz\n"), self.write("b.tsv", "a\ty\n")
        self.prepared("--train", train, "--test", test, "--no-header", "--text", 0, "--label", 1)
        self.assertEqual((self.labels("train").tolist(), self.labels("test").tolist()), ([0, 2], [1]))

    def test_an_old_file_stays_when_the_new_one_fails(self) -> None:
        self.output.write_text("old")
        code, _, _ = self.prepare("--train", self.write("t.tsv", "a\n"), "--no-header", "--text", 0, "--label", 1)
        self.assertEqual((code, self.output.read_text()), (2, "old"))


class WhatIsRefused(PrepareTest):
    TABLE = ("--no-header", "--text", 0, "--label", 1)

    def test_every_malformed_row_by_file_and_line(self) -> None:
        named = ("--text", "t", "--label", "y")
        cases = [
            ("wrong.tsv", "a\t1\nb\t0\textra\n", self.TABLE, ":2: expected 2 fields", "found 3"),
            ("blank.tsv", "a\t1\n\nb\t0\n", self.TABLE, ":2: expected 2 fields", "found 1"),
            ("short.csv", "t,y\na,1\nb\n", named, ":3: expected 2 fields", "found 1"),
            ("quote.csv", 't,y\na,1\n"b,0\n', named, ":3: expected a CSV row"),
            ("empty.tsv", "a\t1\n \t0\n", self.TABLE, ":2: expected text in column '0'"),
            ("label.tsv", "a\t1\nb\t\n", self.TABLE, ":2: expected a class name or a whole number"),
            ("bytes.tsv", b"a\t1\nb\xff\t0\n", self.TABLE, ":2: expected UTF-8", "0xff at position 1"),
            (
                "number.tsv",
                "a\t1\nb\tmuch\n",
                (*self.TABLE, "--task", "regression"),
                ":2: expected a finite number",
                "'much'",
            ),
            ("nan.tsv", "a\t1\nb\tnan\n", (*self.TABLE, "--task", "regression"), ":2: expected a finite number"),
            ("rating.tsv", "a\t1\nb\tbad\n", (*self.TABLE, "--positive-above", 0), ":2: expected a finite number"),
            (
                "name.tsv",
                "a\tyes\nb\tmaybe\n",
                (*self.TABLE, "--label-names", "yes,no"),
                ":2: expected a label out of",
                "'maybe'",
            ),
            ("column.tsv", "a\t1\n", ("--no-header", "--text", 0, "--label", 7), ":1: expected a column with index 7"),
            ("header.tsv", "text\ty\na\t1\n", named, ":1: expected a column 't'", "['text', 'y']"),
            ("twice.tsv", "t\tt\na\t1\n", named, ":1: expected every column name once"),
            ("broken.jsonl", '{"t": "a", "y": 0}\n{"t": \n', named, ":2: expected one JSON object per line"),
            ("list.jsonl", '{"t": "a", "y": 0}\n[1]\n', named, ":2: expected a JSON object"),
            ("key.jsonl", '{"t": "a", "y": 0}\n{"t": "b"}\n', named, ":2: expected the key 'y'", "['t']"),
            ("null.jsonl", '{"t": "a", "y": 0}\n{"t": "b", "y": null}\n', named, ":2: expected a class name"),
            ("type.jsonl", '{"t": "a", "y": 0}\n{"t": 5, "y": 1}\n', named, ":2: expected text in column 't'"),
            ("id.tsv", "a\t1\nb\t0\na\t1\n", (*self.TABLE, "--id", 0), ":3: expected every id once", "id.tsv:1"),
        ]
        for name, content, options, *pieces in cases:
            with self.subTest(name):
                stderr = self.refused("--train", self.write(name, content), *options)
                self.expect(stderr, str(self.folder / name) + pieces[0], *pieces[1:])

    def test_a_bad_split_value_by_file_and_line(self) -> None:
        source = self.write("t.tsv", "a\t1\ttrain\nb\t0\tdev\n")
        self.expect(
            self.refused("--input", source, *self.TABLE, "--split-column", 2),
            "t.tsv:2: expected a split out of",
            "'dev'",
        )

    def test_files_and_folders_that_do_not_fit(self) -> None:
        good = self.write("t.tsv", "a\t1\nb\t0\n")
        self.expect(self.refused("--train", self.folder / "none.tsv", *self.TABLE), "none.tsv: no such file")
        self.expect(
            self.refused("--train", self.write("t.dat", "a\t1\n"), *self.TABLE),
            "t.dat: expected a file that ends in .tsv",
        )
        self.expect(self.refused("--train", self.write("e.tsv", ""), *self.TABLE), "e.tsv: expected at least one row")
        self.expect(
            self.refused("--train", good, "--no-header", "--text", "t", "--label", 1),
            "given by name",
            "without a header",
        )
        self.expect(self.refused("--train", self.write("one.tsv", "a\t1\n"), *self.TABLE), "at least two classes")
        (self.tokenizer / "tokenizer.json").write_text("{}")
        self.expect(self.refused("--train", good, *self.TABLE), "tokenizer.json: expected a tokenizer")
        (self.tokenizer / "tokenizer.json").unlink()
        self.expect(self.refused("--train", good, *self.TABLE), "expected a tokenizer folder with tokenizer.json")

    def test_a_tokenizer_without_padding_token_asks_for_one(self) -> None:
        good = self.write("t.tsv", "a\t1\nb\t0\n")
        self.tokenizer = self.folder / "no_padding"
        save_tokenizer(self.tokenizer, pads=False)
        self.expect(self.refused("--train", good, *self.TABLE), "--pad-token-id")
        self.prepared("--train", good, *self.TABLE, "--pad-token-id", 3)
        self.assertEqual(self.attribute("pad_token_id"), 3)

    def test_options_that_contradict_each_other(self) -> None:
        good = self.write("t.tsv", "a\t1\nb\t0\n")
        cases = [
            ((), "expected either --input"),
            (("--train", good, "--input", good), "found --input and --train"),
            (("--input", good), "expected --split-column"),
            (("--input", good, "--test", good, "--split-column", 1), "--validation and --test"),
            (("--train", good, "--split-hash-prefix", "x"), "expected together with --input"),
            (("--train", good, "--drop-within", 1), "--drop-within"),
            (("--train", good, "--positive-above", 0, "--drop-within", -1), "at least 0"),
            (("--train", good, "--task", "regression", "--label-names", "a,b"), "--task classification"),
            (("--train", good, "--label-names", "a,a"), "two different names"),
            (("--train", good, "--positive-above", 0, "--label-names", "a,b,c"), "two --label-names"),
            (("--train", good, "--max-length", 2), "more than the 2 special tokens"),
            (("--train", good, "--pad-token-id", 99), "padding token id in [0, 13)"),
        ]
        for options, piece in cases:
            with self.subTest(piece):
                self.expect(self.refused(*options, *self.TABLE), piece)


if __name__ == "__main__":
    unittest.main()
