# SPDX-License-Identifier: Apache-2.0
"""Multiple-choice questions in their published forms, and in those of the hub."""

from __future__ import annotations

import json
import unittest
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from prepare_case import PrepareTest, save_tokenizer

AI2 = {
    "id": "7-980",
    "question": {
        "stem": "a b",
        "choices": [{"text": "c", "label": "A"}, {"text": "d e", "label": "B"}, {"text": "f", "label": "C"}],
    },
    "answerKey": "B",
}
HUB_CHOICES = {"text": ["c", "d e", "f"], "label": ["A", "B", "C"]}
PIQA = [{"goal": "a b", "sol1": "c", "sol2": "d e"}, {"goal": "f", "sol1": "g", "sol2": "h"}]
SCIQ = {
    "question": "a b",
    "distractor3": "c",
    "distractor1": "d",
    "distractor2": "e",
    "correct_answer": "f",
    "support": "g h",
}


class Questions(PrepareTest):
    def setUp(self) -> None:
        super().setUp()
        save_tokenizer(self.tokenizer, template="gpt2", words=["Question:", "Answer:"])

    def write_lines(self, name: str, rows: list[dict[str, Any]]) -> None:
        self.write(name, "".join(json.dumps(row) + "\n" for row in rows))

    def prepare_dataset(self, name: str, *options: object) -> str:
        return self.prepared("--dataset", name, "--folder", self.folder, *options)

    def check(self, prompt: str) -> None:
        """The question of AI2 above, after `prompt`."""
        self.assertEqual(self.words("train"), [f"{prompt} {choice}" for choice in ("c", "d e", "f")])
        self.assertEqual(self.array("train", "prompt_lengths").tolist(), [len(prompt.split())] * 3)
        self.assertEqual(self.array("train", "choice_offsets").tolist(), [0, 3])
        self.assertEqual((self.labels("train").tolist(), self.ids("train")), ([1], ["7-980"]))

    def test_openbookqa_and_arc_as_published_and_as_on_the_hub(self) -> None:
        for name, published, prompt in (
            ("openbookqa", "train.jsonl", "a b"),
            ("arc_easy", "ARC-Easy-Train.jsonl", "Question: a b Answer:"),
            ("arc_challenge", "ARC-Challenge-Train.jsonl", "Question: a b Answer:"),
        ):
            with self.subTest(name):
                self.write_lines(published, [AI2])
                self.prepare_dataset(name)
                self.check(prompt)
                (self.folder / published).unlink()
                stem = "question_stem" if name == "openbookqa" else "question"
                row = {"id": "7-980", stem: "a b", "choices": HUB_CHOICES, "answerKey": "B"}
                file = self.folder / "train-00000-of-00001.parquet"
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), file)
                self.prepare_dataset(name)
                self.check(prompt)
                file.unlink()
        self.assertEqual((self.attribute("task"), self.attribute("num_labels")), ("multiple_choice", 0))
        self.assertEqual(self.array("train", "choice_offsets").dtype, np.int64)

    def test_arc_has_questions_of_three_to_five_choices_with_digits_too(self) -> None:
        choices = [{"text": word, "label": str(index + 1)} for index, word in enumerate("cdefg")]
        more = {"id": "x", "question": {"stem": "h", "choices": choices}, "answerKey": "5"}
        for name in ("Train", "Dev", "Test"):
            self.write_lines(f"ARC-Easy-{name}.jsonl", [AI2, more])
        summary = self.prepare_dataset("arc_easy")
        for split in ("train", "validation", "test"):
            self.assertEqual(self.array(split, "choice_offsets").tolist(), [0, 3, 8])
            self.assertEqual(self.labels(split).tolist(), [1, 4])
        self.assertRegex(summary, r"train +2 .* 8 choices")

    def test_piqa_keeps_its_labels_beside_the_questions(self) -> None:
        self.write_lines("train.jsonl", PIQA)
        self.write("train-labels.lst", "1\n0\n")
        self.write_lines("valid.jsonl", [row | {"label": 1} for row in PIQA])
        self.prepare_dataset("piqa")
        self.assertEqual(
            self.words("train"),
            [f"Question: {text}" for text in ("a b Answer: c", "a b Answer: d e", "f Answer: g", "f Answer: h")],
        )
        self.assertEqual((self.labels("train").tolist(), self.labels("validation").tolist()), ([1, 0], [1, 1]))
        digest = self.attribute("source_digest")
        self.write("train-labels.lst", "1\n1\n")
        self.prepare_dataset("piqa")
        self.assertNotEqual(self.attribute("source_digest"), digest)
        self.output.unlink()
        labels = self.write("train-labels.lst", "1\n")
        self.expect(
            self.refused("--dataset", "piqa", "--folder", self.folder), f"{labels}: expected one label for every line"
        )
        self.write("train-labels.lst", "1\n2\n")
        stderr = self.refused("--dataset", "piqa", "--folder", self.folder)
        self.expect(stderr, f"{self.folder / 'train.jsonl'}:2: expected 0 or 1 as label, found '2'")

    def test_sciq_is_a_json_list_and_puts_the_support_first(self) -> None:
        self.write("train.json", json.dumps([SCIQ, SCIQ | {"support": ""}], indent=1))
        self.prepare_dataset("sciq")
        self.assertEqual(self.words("train")[3:5], ["g h Question: a b Answer: f", "Question: a b Answer: d"])
        self.assertEqual(self.labels("train").tolist(), [3, 3])

    def test_the_right_choice_is_an_answer_to_learn(self) -> None:
        self.write_lines("train.jsonl", [AI2])
        self.prepare_dataset("openbookqa", "--task", "causal_lm")
        self.assertEqual((self.words("train"), self.attribute("task")), (["a b d e </s>"], "causal_lm"))
        self.prepare_dataset("openbookqa", "--task", "causal_lm", "--answer-prefix", "")
        self.assertEqual(self.words("train"), ["a [UNK] e </s>"])  # "bd": no space in between

    def test_a_long_prompt_is_cut_for_each_choice_at_its_start(self) -> None:
        self.write_lines("train.jsonl", [AI2])
        summary = self.prepare_dataset("openbookqa", "--max-length", 3)
        self.assertEqual(self.words("train"), ["a b c", "b d e", "a b f"])
        self.assertEqual(self.array("train", "prompt_lengths").tolist(), [2, 1, 2])
        self.assertRegex(summary, r"train +1 +0 +1 ")

    def test_malformed_questions_are_named(self) -> None:
        def changed(**question: object) -> dict[str, Any]:
            return AI2 | {"question": AI2["question"] | question}

        rows = [
            (AI2, None),
            (AI2 | {"answerKey": "E"}, "expected an answerKey out of ['A', 'B', 'C'], found 'E'"),
            (
                changed(choices=[{"text": "c", "label": "A"}, {"text": " ", "label": "B"}]),
                "expected a text for every choice",
            ),
            (changed(choices="c"), "expected choices with label and text, found 'c'"),
            (changed(choices=[{"text": "c", "label": "B"}]), "expected at least two choices"),
            (changed(stem=""), "expected text in column 'stem'"),
            ({"id": "x", "answerKey": "A"}, "expected the key 'question_stem'"),
            (
                {"id": "x", "question": "a", "choices": {"text": ["c"], "label": ["A", "B"]}, "answerKey": "A"},
                "text for every choice",
            ),
            (changed() | {"answerKey": None}, "expected text in column 'answerKey'"),
        ]
        self.write_lines("train.jsonl", [row for row, _ in rows])
        stderr = self.refused("--dataset", "openbookqa", "--folder", self.folder)
        for line, (_, piece) in enumerate(rows, start=1):
            if piece is not None:
                self.expect(stderr, f"{self.folder / 'train.jsonl'}:{line}: {piece}" if piece[0] == "e" else piece)
        self.expect(stderr, "8 malformed rows (train.jsonl 8)")
        self.prepare_dataset("openbookqa", "--drop-malformed")
        self.check("a b")
        broken = self.write("broken.json", "[1, {]")
        self.expect(self.refused_after(broken), f"{broken}: expected a JSON list of objects")
        broken.write_text("[1]")
        self.expect(self.refused_after(broken), f"{broken}:1: expected an object, found 1")

    def refused_after(self, train: object) -> str:
        self.output.unlink(missing_ok=True)
        return self.refused("--dataset", "sciq", "--train", train)


if __name__ == "__main__":
    unittest.main()
