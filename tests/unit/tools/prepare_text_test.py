# SPDX-License-Identifier: Apache-2.0
"""Texts as targets: seq2seq, continuations (E2E, question and answer, plain text); and several labels a row."""

from __future__ import annotations

import json
import unittest
from unittest import mock

import numpy as np
from prepare_case import EOS, PrepareTest, ids_of, save_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from espalier_prepare import encoding

PROMPT_WORDS = "Input: Output: Question: Answer: name[X] name[X], near[Y]".split()


class Seq2Seq(PrepareTest):
    def setUp(self) -> None:
        super().setUp()
        save_tokenizer(self.tokenizer, template="t5")
        self.arguments = ("--task", "seq2seq", "--text", "from", "--target", "to")

    def test_both_sides_end_and_are_cut_alone(self) -> None:
        source = self.write("t.csv", "from,to\na b c d,e\nf,g h a b c\n")
        summary = self.prepared("--train", source, *self.arguments, "--max-length", 4, "--max-target-length", 3)
        self.assertEqual(self.words("train"), ["a b c </s>", "f </s>"])
        self.assertEqual(self.words("train", "target_ids", "target_offsets"), ["e </s>", "g h </s>"])
        self.assertRegex(summary, r"train +2 +0 +2 .* 5 target tokens, longest 3")
        self.assertEqual(self.array("train", "target_ids").dtype, np.int32)
        self.assertEqual(
            self.arrays("train"),
            {"input_ids", "input_offsets", "target_ids", "target_offsets", "id_bytes", "id_offsets"},
        )
        self.assertEqual((self.attribute("task"), self.attribute("num_labels")), ("seq2seq", 0))

    def test_a_prompt_is_filled_with_columns(self) -> None:
        save_tokenizer(self.tokenizer, template="t5", words=PROMPT_WORDS)
        source = self.write("t.jsonl", '{"q": "a {c}", "c": "b", "y": "d"}\n')
        self.prepared(
            "--train", source, "--task", "seq2seq", "--prompt", "Question: {q} {c}\\nAnswer:", "--target", "y"
        )
        self.assertEqual(self.words("train"), ["Question: a [UNK] b Answer: </s>"])

    def test_rows_that_are_too_long_may_be_refused_or_left_out(self) -> None:
        source = self.write("t.csv", "from,to\na,e\na b c d,e\nf,g h a b c\n")
        arguments = ("--train", source, *self.arguments, "--max-length", 4, "--max-target-length", 4)
        stderr = self.refused(*arguments, "--too-long", "refuse")
        self.expect(stderr, f"{source}:3: expected a row that is not too long", f"{source}:4: ", "2 malformed rows")
        self.prepared(*arguments, "--too-long", "refuse", "--drop-malformed")
        self.assertEqual(self.ids("train"), ["t.csv:2"])
        self.assertEqual(self.words("train", "target_ids", "target_offsets"), ["e </s>"])
        self.assertEqual(json.loads(self.attribute("prepare_counts"))["malformed"], {"t.csv": 2})

    def test_malformed_rows_are_named(self) -> None:
        source = self.write("t.csv", b'from,to\na,\n ,b\n"a\nb",c,d\n"a\xfe\nb",c\nd,e"f\nd,"e"f\na,b\n')
        stderr = self.refused("--train", source, *self.arguments)
        for line, piece in ((2, "'to' (target)"), (3, "'from' (text)"), (4, "found 3"), (6, "0xfe"), (9, "a CSV row")):
            self.expect(stderr, f"{source}:{line}: expected", piece)
        self.expect(stderr, "5 malformed rows")
        self.prepared("--train", source, *self.arguments, "--drop-malformed")
        self.assertEqual(self.ids("train"), ["t.csv:8", "t.csv:10"])

    def test_columns_that_do_not_fit_the_task(self) -> None:
        source = self.write("t.csv", "from,to\na,b\n")
        cases = [
            (("--task", "seq2seq", "--text", "from"), "--target: expected for --task seq2seq"),
            (("--task", "seq2seq", "--target", "to"), "--text: expected for --task seq2seq"),
            ((*self.arguments, "--label", "to"), "--label: not used by --task seq2seq"),
            ((*self.arguments, "--prompt", "{from}"), "either --text or --prompt"),
            (("--task", "seq2seq", "--prompt", "Say:", "--target", "to"), "--prompt: expected a column in braces"),
            (("--task", "multiple_choice", "--text", "from"), "expected --dataset out of ['openbookqa'"),
            ((*self.arguments, "--blocks"), "--blocks: expected with --task causal_lm"),
            ((*self.arguments, "--max-target-length", 1), "more than the 1 special tokens"),
        ]
        for options, piece in cases:
            with self.subTest(piece):
                self.expect(self.refused("--train", source, *options), piece)


class CausalLm(PrepareTest):
    def setUp(self) -> None:
        super().setUp()
        save_tokenizer(self.tokenizer, template="gpt2", words=PROMPT_WORDS)

    def write_e2e(self) -> None:
        for name in ("trainset", "devset", "testset_w_refs"):
            self.write(f"{name}.csv", 'mr,ref\n"name[X], near[Y]","a b, c"\n"name[X]",d\n')

    def test_e2e_learns_the_answer_after_its_prompt(self) -> None:
        self.write_e2e()
        self.prepared("--dataset", "e2e", "--folder", self.folder)
        for split in ("train", "validation", "test"):
            self.assertEqual(
                self.words(split), ["Input: name[X], near[Y] Output: a [UNK] c </s>", "Input: name[X] Output: d </s>"]
            )
            self.assertEqual(self.array(split, "prompt_lengths").tolist(), [4, 3])
            self.assertNotIn("loss_mask", self.arrays(split))
        self.assertEqual((self.attribute("task"), self.attribute("label_names")), ("causal_lm", "[]"))

    def test_loss_on_all_tokens_keeps_where_the_prompt_ends(self) -> None:
        self.write_e2e()
        summary = self.prepared("--dataset", "e2e", "--folder", self.folder, "--loss", "all")
        self.assertEqual(self.array("train", "prompt_lengths").tolist(), [4, 3])
        self.assertEqual(self.array("train", "loss_mask").tolist(), [1] * 13)
        self.assertEqual(self.array("train", "loss_mask").dtype, np.uint8)
        self.assertIn("loss on 13 tokens", summary)

    def test_e2e_serves_seq2seq_too(self) -> None:
        save_tokenizer(self.tokenizer, template="t5", words=PROMPT_WORDS)
        self.write_e2e()
        self.prepared("--dataset", "e2e", "--folder", self.folder, "--task", "seq2seq")
        self.assertEqual(self.words("train")[1], "Input: name[X] Output: </s>")
        self.assertEqual(self.words("train", "target_ids", "target_offsets")[1], "d </s>")

    def test_questions_and_answers_are_json_lines(self) -> None:
        self.write("train.jsonl", '{"question": "a b", "answer": "c"}\n{"question": "d", "answer": "e f"}\n')
        self.prepared("--dataset", "qa", "--folder", self.folder)
        self.assertEqual(self.words("train"), ["Question: a b Answer: c </s>", "Question: d Answer: e f </s>"])
        self.assertEqual(self.array("train", "prompt_lengths").tolist(), [4, 3])

    def test_malformed_pairs_are_named_in_every_form(self) -> None:
        csv = self.write("trainset.csv", "mr,ref\nname[X],a\nname[X],\n")
        self.expect(
            self.refused("--dataset", "e2e", "--folder", self.folder), f"{csv}:3: expected text in column 'ref'"
        )
        csv.write_text("mr\nname[X]\n")
        self.expect(self.refused("--dataset", "e2e", "--folder", self.folder), f"{csv}:1: expected a column 'ref'")
        lines = self.write("train.jsonl", '{"question": "a"}\n{"question": "a", "answer": null}\n{"question": \n')
        stderr = self.refused("--dataset", "qa", "--train", lines)
        self.expect(stderr, f"{lines}:1: expected the key 'answer'", f"{lines}:2: expected text in column 'answer'")
        self.expect(stderr, f"{lines}:3: expected one JSON object per line", "3 malformed rows")

    def test_a_long_prompt_loses_its_start_and_an_answer_nothing(self) -> None:
        save_tokenizer(self.tokenizer, template="opt")
        source = self.write("t.tsv", "a b c d e\tf g\na\tf g\n")
        arguments = ("--train", source, "--no-header", "--task", "causal_lm", "--text", 0, "--target", 1)
        summary = self.prepared(*arguments, "--max-length", 6)
        self.assertEqual(self.words("train"), ["</s> d e f g </s>", "</s> a f g </s>"])
        self.assertEqual(self.array("train", "prompt_lengths").tolist(), [3, 2])
        self.assertRegex(summary, r"train +2 +0 +1 ")
        self.output.unlink()
        stderr = self.refused(*arguments, "--max-length", 3)
        self.expect(stderr, f"{source}:1: expected an answer of at most 2 tokens, found 3", f"{source}:2: ")

    def test_prompt_and_answer_meet_where_their_text_does_with_subwords_too(self) -> None:
        prompt, answer = "Input: name[Caf\u00e9 \U0001f642] Output:", "The caf\u00e9 \U0001f642 is cheap."
        source = self.write("t.jsonl", json.dumps({"p": prompt, "a": answer}) + "\n")
        bytes_of = (models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())
        marks = (models.Unigram(), pre_tokenizers.Metaspace(), decoders.Metaspace())
        for name, (model, pre_tokenizer, decoder) in {"byte level": bytes_of, "word marks": marks}.items():
            with self.subTest(name):
                tokenizer = Tokenizer(model)
                tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
                settings = {"special_tokens": ["</s>"], "vocab_size": 400, "show_progress": False}
                trainer = (
                    trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **settings)
                    if name == "byte level"
                    else trainers.UnigramTrainer(**settings)
                )
                tokenizer.train_from_iterator([prompt, answer, "name and cafe"], trainer)
                tokenizer.save(str(self.tokenizer / "tokenizer.json"))
                columns = ("--text", "p", "--target", "a", "--pad-token-id", 0)
                self.prepared("--train", source, "--task", "causal_lm", *columns)
                ids, length = self.rows("train")[0], int(self.array("train", "prompt_lengths")[0])
                self.assertEqual(ids[:length], tokenizer.encode(prompt).ids)
                self.assertEqual(ids[-1], tokenizer.token_to_id("</s>"))
                self.assertEqual(tokenizer.decode(ids[length:]).strip(), answer)

    def test_texts_without_answer_are_learned_whole(self) -> None:
        source = self.write("t.tsv", "a b c\nd e f g\n")
        self.prepared("--train", source, "--no-header", "--task", "causal_lm", "--text", 0, "--max-length", 4)
        self.assertEqual(self.words("train"), ["a b c </s>", "d e f g"])
        self.assertEqual(self.array("train", "prompt_lengths").tolist(), [0, 0])
        one = self.write("one.tsv", "a b\nd\n")
        (self.tokenizer / "tokenizer_config.json").unlink()
        self.output.unlink()
        stderr = self.refused("--train", one, "--no-header", "--task", "causal_lm", "--text", 0)
        self.expect(stderr, "found no end token", "--eos-token-id")

    def test_a_text_without_tokens_is_named_as_such(self) -> None:
        file = str(self.tokenizer / "tokenizer.json")
        tokenizer = Tokenizer.from_file(file)
        tokenizer.normalizer = normalizers.Replace("h", "")
        tokenizer.save(file)
        source = self.write("t.tsv", "a b\tc\nh\th\n")
        arguments = ("--train", source, "--no-header", "--task", "causal_lm", "--text", 0)
        self.expect(self.refused(*arguments), f"{source}:2: expected a text with at least one token, found none")
        stderr = self.refused(*arguments, "--target", 1)
        self.expect(stderr, f"{source}:2: expected an answer with a token, found none")

    def test_plain_text_becomes_blocks(self) -> None:
        one, two = self.write("one.txt", "a b c\nd e\n"), self.write("two.txt", "f g\r\nh")
        for name, length, blocks in (
            ("even", 5, ["a b c d e", "</s> f g h </s>"]),
            ("short at the end", 4, ["a b c d", "e </s> f g", "h </s>"]),
            ("never one token", 9, ["a b c d e </s> f g", "h </s>"]),
        ):
            with self.subTest(name):
                self.prepared(
                    "--train", one, two, "--task", "causal_lm", "--text", "text", "--blocks", "--max-length", length
                )
                self.assertEqual(self.words("train"), blocks)
                self.assertEqual(self.array("train", "prompt_lengths").tolist(), [0] * len(blocks))
                self.assertEqual(self.ids("train"), [str(index) for index in range(len(blocks))])

    def test_long_texts_are_read_in_pieces(self) -> None:
        words = ["a", "b\n", "c", "\n\n", "d\n"] * 40
        source = self.write("long.txt", " ".join(words).replace("\n ", "\n"))
        with mock.patch("espalier_prepare.encoding._PIECE_CHARACTERS", 20):
            self.assertGreater(len(encoding._pieces(source.read_text())), 10)
            self.prepared("--train", source, "--task", "causal_lm", "--text", "text", "--blocks", "--max-length", 1000)
        self.assertEqual(self.array("train", "input_ids").tolist(), [*ids_of(" ".join(words)), EOS])

    def test_plain_text_that_is_not_utf8_is_named_by_line(self) -> None:
        source = self.write("t.txt", b"a\nb\xff\nc\n")
        stderr = self.refused("--train", source, "--task", "causal_lm", "--text", "text", "--blocks")
        self.expect(stderr, f"{source}:2: expected UTF-8, found the byte 0xff at position 1")


class ManyLabels(PrepareTest):
    def test_a_row_has_any_of_the_labels(self) -> None:
        source = self.write("t.jsonl", '{"t": "a", "y": ["red", "big"]}\n{"t": "b", "y": []}\n{"t": "c", "y": "big"}\n')
        summary = self.prepared("--train", source, "--task", "multi_label", "--text", "t", "--label", "y")
        self.assertEqual(self.labels("train").tolist(), [[1, 1], [0, 0], [1, 0]])
        self.assertEqual(self.labels("train").dtype, np.float32)
        self.assertEqual(json.loads(self.attribute("label_names")), ["big", "red"])
        self.assertEqual((self.attribute("num_labels"), self.attribute("task")), (2, "multi_label"))
        self.assertIn("big 2, red 1", summary)

    def test_labels_may_be_one_text_and_their_names_given(self) -> None:
        source = self.write("t.tsv", "a\tred;big\nb\t\n")
        arguments = ("--train", source, "--no-header", "--task", "multi_label", "--text", 0, "--label", 1)
        self.prepared(*arguments, "--label-separator", ";", "--label-names", "red,round,big")
        self.assertEqual(self.labels("train").tolist(), [[1, 0, 1], [0, 0, 0]])
        self.output.unlink()
        source.write_text("a\tred;big\nb\tblue\nc\tred;red\nd\tred;\n")
        stderr = self.refused(*arguments, "--label-separator", ";", "--label-names", "red,big")
        self.expect(stderr, f"{source}:2: expected a label out of ['red', 'big'], found 'blue'")
        self.expect(stderr, f"{source}:3: expected every label once", f"{source}:4: expected a class name")

    def test_further_label_columns_have_their_own_classes(self) -> None:
        source = self.write("t.csv", "t,y,size,shade\na,1,big,3\nb,0,small,4\nc,1,small,3\n")
        arguments = (
            "--train",
            source,
            "--text",
            "t",
            "--label",
            "y",
            "--extra-label",
            "size",
            "--extra-label",
            "shade",
        )
        self.prepared(*arguments)
        self.assertEqual(self.labels("train").tolist(), [1, 0, 1])
        self.assertEqual(self.array("train", "labels_size").tolist(), [0, 1, 1])
        self.assertEqual(self.array("train", "labels_shade").tolist(), [0, 1, 0])
        columns = json.loads(self.attribute("label_columns"))
        self.assertEqual(columns, {"size": ["big", "small"], "shade": ["3", "4"]})

    def test_a_further_column_of_one_class_is_refused(self) -> None:
        source = self.write("t.csv", "t,y,size\na,1,big\nb,0,big\n")
        stderr = self.refused("--train", source, "--text", "t", "--label", "y", "--extra-label", "size")
        self.expect(stderr, "--extra-label size: expected at least two classes", "found ['big']")

    def test_further_numbers_stay_numbers(self) -> None:
        source = self.write("t.csv", "t,y,z\na,1,2.5\nb,0,-1\n")
        arguments = ("--train", source, "--text", "t", "--label", "y", "--extra-label", "z", "--task", "regression")
        self.prepared(*arguments)
        self.assertEqual(self.array("train", "labels_z").tolist(), [2.5, -1])
        self.assertEqual(json.loads(self.attribute("label_columns")), {"z": []})
        self.output.unlink()
        source.write_text("t,y,z\na,1,none\n")
        self.expect(self.refused(*arguments), f"{source}:2: expected a finite number as label, found 'none'")


if __name__ == "__main__":
    unittest.main()
