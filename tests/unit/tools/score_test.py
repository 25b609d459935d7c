# SPDX-License-Identifier: Apache-2.0
"""tools/score.py: metrics against values worked out by hand, every source of references, and what is refused."""

from __future__ import annotations

import contextlib
import io
import json
import math
import unittest
from pathlib import Path
from typing import Any

from prepare_case import EOS, PrepareTest, save_tokenizer
from tokenizers import Tokenizer

from espalier_score.classes import class_metrics, number_metrics
from espalier_score.cider import cider, words_of
from espalier_score.command import main
from espalier_score.metrics import METRICS, squad_words
from espalier_score.vqa import normalise, vqa_accuracy

WORDS = ["positive", "negative", "3.8", "0.0", "sst2", "stsb", "sentence:", "sentence1:", "sentence2:"]


class MetricsTest(unittest.TestCase):
    def test_squad_makes_answers_alike(self) -> None:
        self.assertEqual(squad_words("The  Cat's, an END."), ["cats", "end"])
        self.assertEqual(METRICS["exact_match"](["the Cat!", "dog"], [["cat"], ["cat", "a dog"]]), 1)
        self.assertEqual(METRICS["exact_match"](["cat", "dogs"], [["cat"], ["dog"]]), 0.5)

    def test_token_f1_takes_the_best_reference(self) -> None:
        # 2 shared of 2 and 4: 2 * 2 / 6; against the other reference 2 * 1 / 3.
        self.assertAlmostEqual(METRICS["token_f1"](["red cat"], [["big red cat sat", "cat"]]), 2 / 3)
        self.assertEqual(METRICS["token_f1"](["the"], [["a"]]), 1)
        self.assertEqual(METRICS["token_f1"](["the"], [["cat"]]), 0)

    def test_bleu_pools_ngrams_over_rows_and_references(self) -> None:
        # Row 1: n-grams 5 4 3 2 all found in one reference or the other. Row 2: 4 of 5, 2 of 4, 1 of 3, 0 of 2.
        texts = ["a b c d e", "a b c x e"]
        references = [["a b c d e", "z z z z z"], ["a b c d e"]]
        expected = 100 * (9 / 10 * 6 / 8 * 4 / 6 * 2 / 4) ** 0.25
        self.assertAlmostEqual(METRICS["bleu"](texts, references), expected, places=9)

    def test_rouge_l_is_f1_of_the_longest_common_subsequence(self) -> None:
        # a b d e of 5 and 4: 2 * 4 / 9.
        self.assertAlmostEqual(METRICS["rouge_l"](["a b c d e"], [["x y", "a b d e"]]), 8 / 9)

    def test_nist_weighs_ngrams_by_their_rarity(self) -> None:
        # Words of the reference: a twice, b and c once of 4. Unigrams: a 1 bit, b 2 bits: found a, b of 2 words.
        # Bigram a b: a occurs twice, a b once: 1 bit. Length 2 of 4: exp(ln 0.5 / ln 1.5 ^ 2 * ln 0.5 ^ 2).
        penalty = math.exp(math.log(0.5) / math.log(1.5) ** 2 * math.log(0.5) ** 2)
        self.assertAlmostEqual(METRICS["nist"](["a b"], [["a b a c"]]), ((1 + 2) / 2 + 1) * penalty)
        self.assertEqual(METRICS["nist"]([""], [["a b"]]), 0)

    def test_cider_of_single_words_is_a_cosine_of_rare_words(self) -> None:
        # Three rows; "dog" in one of them, "cat" in two. Unigrams only: a quarter of the cosine, times 10.
        texts, references = ["dog cat", "x", "y"], [["dog", "cat"], ["cat"], ["z"]]
        dog, cat = math.log(3), math.log(1.5)
        norm = math.sqrt(dog**2 + cat**2)
        one_word_off = math.exp(-1 / 72)
        row = (dog / norm + cat / norm) / 2 * one_word_off / 4 * 10
        self.assertAlmostEqual(cider(texts, references), row / 3)

    def test_cider_does_not_reward_repetition(self) -> None:
        references = [["dog runs"], ["cat sits"]]
        self.assertAlmostEqual(cider(["dog runs", "cat sits"], references), 10 * 2 / 4)
        # "dog dog": only as much of it counts as the reference has, so half of |dog dog| * |dog runs|, for unigrams.
        expected = math.log(2) ** 2 / (2 * math.log(2) * math.sqrt(2) * math.log(2)) / 4 * 10
        self.assertAlmostEqual(cider(["dog dog", "x"], references), expected / 2)

    def test_cider_words_are_lower_case_without_punctuation(self) -> None:
        self.assertEqual(words_of('A man\'s "dog" - it doesn\'t bark!'), "a man 's dog it does n't bark".split())

    def test_meteor_needs_its_word_list(self) -> None:
        from espalier_score.metrics import Unavailable

        try:
            value = METRICS["meteor"](["dog"], [["dog"]])
        except Unavailable as reason:
            self.assertIn("wordnet", str(reason))
        else:
            self.assertAlmostEqual(value, 0.5)  # one match in one chunk: 1 - 0.5 * (1 / 1) ^ 3

    def test_vqa_answers_are_made_alike(self) -> None:
        for answer, expected in {
            "The Two dogs.": "2 dogs",
            "None": "0",
            "1,000": "1000",
            "it's": "its",
            "black/white": "black white",
            "black / white": "black white",
            "2.5": "2.5",
        }.items():
            self.assertEqual(normalise(answer), expected, answer)

    def test_vqa_accuracy_leaves_one_person_out_at_a_time(self) -> None:
        # 2 of 10 agree. Left out one of them: 1 / 3; left out another: 2 / 3.
        self.assertAlmostEqual(vqa_accuracy("two", ["2"] * 2 + ["3"] * 8), (2 * 1 / 3 + 8 * 2 / 3) / 10)
        self.assertEqual(vqa_accuracy("a dog", ["dog"] * 4 + ["cat"] * 6), 1)
        self.assertEqual(vqa_accuracy("cow", ["dog"] * 10), 0)

    def test_words_become_classes(self) -> None:
        # Truth + + - -, guesses + ? - +: right 2 of 4; precision 1/2, recall 1/2.
        metrics = class_metrics(["p", "what", "n", "p"], ["p", "p", "n", "n"], ["n", "p"])
        self.assertEqual((metrics["accuracy"], metrics["f1"], metrics["unmatched"]), (0.5, 0.5, 1))
        # Gorodkin: c 2, s 4, truths 2 2 0, guesses 1 2 1: (2 * 4 - 6) / sqrt((16 - 6) (16 - 8))
        self.assertAlmostEqual(metrics["matthews"], 2 / math.sqrt(80))
        three = class_metrics(["a", "b", "b", "c"], ["a", "b", "c", "c"], ["a", "b", "c"])
        self.assertAlmostEqual(three["f1"], (1 + 2 / 3 + 2 / 3) / 3)

    def test_words_become_numbers(self) -> None:
        metrics = number_metrics(["1.0", "3.0", "2.0"], [0.0, 2.0, 4.0])
        self.assertAlmostEqual(metrics["pearson"], 0.5)
        self.assertAlmostEqual(metrics["spearman"], 0.5)
        # -1, 1, 2 and 0, 1, 2: deviations -5/3 1/3 4/3 and -1 0 1.
        metrics = number_metrics(["much", "1", "2"], [0.0, 1.0, 2.0])
        self.assertAlmostEqual(metrics["pearson"], 3 / math.sqrt(42 / 9 * 2))
        self.assertEqual(metrics["unmatched"], 1)
        tied = number_metrics(["1", "1", "2"], [0.0, 1.0, 2.0])
        self.assertAlmostEqual(tied["spearman"], 1.5 / math.sqrt(1.5 * 2))


class ScoreTest(PrepareTest):
    """Runs of the whole program on files that tools/prepare.py made."""

    def setUp(self) -> None:
        super().setUp()
        self.save_tokenizer(WORDS)

    def save_tokenizer(self, words: list[str]) -> None:
        save_tokenizer(self.tokenizer, words=words, template="t5")
        path = str(self.tokenizer / "tokenizer.json")
        tokenizer = Tokenizer.from_file(path)
        tokenizer.add_special_tokens(["</s>"])  # as published tokenizers mark it
        tokenizer.save(path)

    def seq2seq(self, *rows: tuple[str, str, str]) -> None:
        lines = [json.dumps({"key": key, "source": source, "target": target}) for key, source, target in rows]
        path = self.write("rows.jsonl", "\n".join(lines) + "\n")
        self.prepared(
            "--task", "seq2seq", "--train", path, "--test", path, "--text", "source", "--target", "target", "--id", "key"
        )

    def generated(self, *texts: str | list[int]) -> Path:
        tokenizer = Tokenizer.from_file(str(self.tokenizer / "tokenizer.json"))
        lines = []
        for row, text in enumerate(texts):
            ids = text
            if isinstance(text, str):
                ids = [token for token in tokenizer.encode(text, add_special_tokens=False).ids if token]  # no padding
            lines.append(json.dumps({"row": row, "token_ids": ids}))
        return self.write("generated.jsonl", "\n".join(lines) + "\n")

    def run_score(self, *arguments: object) -> tuple[int, str, str]:
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = main([str(argument) for argument in arguments])
        return code, stdout.getvalue(), stderr.getvalue()

    def scored(self, generated: Path, *arguments: object) -> dict[str, Any]:
        code, stdout, stderr = self.run_score("--generated", generated, "--tokenizer", self.tokenizer, *arguments)
        self.assertEqual(code, 0, stderr)
        return json.loads(stdout)

    def expect_refusal(self, generated: Path, arguments: list[object], *pieces: str) -> None:
        code, stdout, stderr = self.run_score("--generated", generated, *arguments)
        self.assertEqual((code, stdout), (2, ""), stderr)
        self.expect(stderr, *pieces)

    def test_targets_of_the_dataset_are_the_references(self) -> None:
        self.seq2seq(("x", "a", "b c"), ("y", "d", "e"))
        texts = self.folder / "texts.jsonl"
        result = self.scored(self.generated("b c", "f"), "--dataset", self.output, "--text-output", texts)
        self.assertEqual(result["rows"], 2)
        self.assertEqual(result["metrics"]["exact_match"], 0.5)
        self.assertEqual(set(result["metrics"]) | set(result["skipped"]), set(METRICS) - {"vqa_accuracy"})
        self.assertEqual(
            [json.loads(line) for line in texts.read_text().splitlines()],
            [{"row": 0, "id": "x", "text": "b c"}, {"row": 1, "id": "y", "text": "f"}],
        )
        # What was written can be scored again, without a tokenizer for it.
        again = self.scored(texts, "--dataset", self.output)
        self.assertEqual(again, result)

    def test_answers_of_a_causal_dataset_are_the_references(self) -> None:
        path = self.write("rows.jsonl", '{"q": "a b", "answer": "c d"}\n')
        self.prepared(
            "--task", "causal_lm", "--train", path, "--test", path, "--text", "q", "--target", "answer", "--loss", "all"
        )
        result = self.scored(self.generated([*(6 + i for i in range(2)), EOS]), "--dataset", self.output)
        self.assertEqual(result["metrics"]["exact_match"], 1)

    def test_rows_of_one_input_share_their_targets(self) -> None:
        self.seq2seq(("1", "a", "b b"), ("2", "a", "c c"), ("3", "d", "e e"))
        generated = self.generated("c c", "c c", "b b")
        self.assertAlmostEqual(self.scored(generated, "--dataset", self.output)["metrics"]["token_f1"], 1 / 3)
        merged = self.scored(generated, "--dataset", self.output, "--merge-same-input")
        self.assertEqual((merged["rows"], merged["metrics"]["token_f1"]), (2, 0.5))

    def test_class_names_of_glue_are_scored_as_classes(self) -> None:
        path = self.write("train.tsv", "sentence\tlabel\na\t1\nb\t0\nc\t1\n")
        self.prepared("--dataset", "sst2", "--template", "t5", "--train", path, "--test", path)
        result = self.scored(self.generated("positive", "positive", "a"), "--dataset", self.output)
        self.assertAlmostEqual(result["metrics"]["accuracy"], 1 / 3)
        self.assertAlmostEqual(result["metrics"]["f1"], 0.5)
        self.assertEqual(result["metrics"]["unmatched"], 1)
        self.assertNotIn("bleu", result["metrics"])

    def test_scores_of_glue_are_scored_as_numbers(self) -> None:
        path = self.write("train.jsonl", "".join(
            json.dumps({"sentence1": "a", "sentence2": "b", "label": label}) + "\n" for label in (3.8, 0.0)
        ))  # fmt: skip
        self.prepared("--dataset", "stsb", "--template", "t5", "--train", path, "--test", path)
        result = self.scored(self.generated("3.8", "0.0"), "--dataset", self.output)
        self.assertAlmostEqual(result["metrics"]["pearson"], 1)

    def test_references_come_from_files(self) -> None:
        self.seq2seq(("7", "a", "x"), ("8", "b", "x"))
        generated = self.generated("b c", "e")
        plain = [self.write("one.txt", "b\ne\n"), self.write("two.txt", "b c\nd\n")]
        by_order = self.write("r.jsonl", '{"references": ["b", "b c"]}\n{"reference": "e"}\n')
        by_id = self.write("id.jsonl", '{"id": "8", "reference": "e"}\n{"id": "7", "reference": "b c"}\n')
        captions = self.write("coco.json", json.dumps({"annotations": [
            {"image_id": 8, "id": 1, "caption": "E."}, {"image_id": 7, "id": 2, "caption": "b"},
            {"image_id": 7, "id": 3, "caption": "B c"}, {"image_id": 9, "id": 4, "caption": "other"},
        ]}))  # fmt: skip
        for references in (plain, [by_order], [by_id], [captions]):
            result = self.scored(generated, "--references", *references, "--dataset", self.output)
            self.assertEqual(result["metrics"]["exact_match"], 1, references)
        self.assertEqual(self.scored(generated, "--references", *plain)["metrics"]["exact_match"], 1)

    def test_answers_of_vqa_give_the_soft_score(self) -> None:
        self.seq2seq(("7", "a", "x"))
        people = [{"answer": "b"}] * 2 + [{"answer": "c"}] * 8
        path = self.write("vqa.json", json.dumps({"annotations": [{"question_id": 7, "answers": people}]}))
        result = self.scored(self.generated("b"), "--references", path, "--dataset", self.output)
        self.assertEqual(list(result["metrics"]), ["vqa_accuracy"])
        self.assertAlmostEqual(result["metrics"]["vqa_accuracy"], 0.6)

    def test_rows_that_do_not_fit_the_dataset_are_named(self) -> None:
        self.seq2seq(("x", "a", "b"), ("y", "a", "b"))
        score = ["--tokenizer", self.tokenizer, "--dataset", self.output]
        self.expect_refusal(self.generated("b"), score, "found none for 1 of them: 1", "wrong dataset or split")
        self.expect_refusal(self.generated("b", "b", "b"), score, "found also row 2")
        self.expect_refusal(self.generated("b", "b"), [*score, "--split", "validation"], "'validation'", "'test'")
        doubled = self.write("d.jsonl", '{"row": 0, "token_ids": [4]}\n{"row": 0, "token_ids": [4]}\n')
        self.expect_refusal(doubled, score, "d.jsonl:2", "found row 0 again")
        few = self.write("few.txt", "b\n")
        self.expect_refusal(self.generated("b", "b"), [*score, "--references", few], "few.txt", "found 1")
        unknown = self.write("u.jsonl", '{"id": "x", "reference": "b"}\n')
        self.expect_refusal(self.generated("b", "b"), [*score, "--references", unknown], "['y']", "--id")

    def test_a_dataset_of_another_tokenizer_or_task_is_refused(self) -> None:
        self.seq2seq(("x", "a", "b"))
        self.save_tokenizer([*WORDS, "more"])
        score = ["--tokenizer", self.tokenizer, "--dataset", self.output]
        self.expect_refusal(self.generated("b"), score, "made with the tokenizer", "found another")
        path = self.write("t.tsv", "text\tlabel\na\tx\nb\ty\n")
        self.prepared("--train", path, "--text", "text", "--label", "label")
        self.expect_refusal(self.generated("b"), score, "seq2seq or causal_lm", "found classification")
        self.expect_refusal(self.generated("b"), [*score[:3], path], "expected a dataset file")

    def test_malformed_lines_are_named(self) -> None:
        score = ["--tokenizer", self.tokenizer, "--references", self.write("r.txt", "b\n")]
        for line, piece in {
            "nonsense": "one JSON object per line",
            '{"token_ids": [1]}': "'row'",
            '{"row": -1, "token_ids": [1]}': "found -1",
            '{"row": 0, "token_ids": ["a"]}': "list of token ids",
            '{"row": 0}': "'token_ids'",
        }.items():
            self.expect_refusal(self.write("bad.jsonl", line + "\n"), score, "bad.jsonl:1", piece)
        self.expect_refusal(self.write("none.jsonl", ""), score, "at least one generated row")
        self.expect_refusal(self.generated("b"), score[2:], "--tokenizer")
        self.expect_refusal(self.generated("b"), [*score, "--metrics", "bleu,blue"], "['blue']")
        self.expect_refusal(self.generated("b"), score[:2], "--text-output")


if __name__ == "__main__":
    unittest.main()
