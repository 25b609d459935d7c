# SPDX-License-Identifier: Apache-2.0
"""GLUE folders: the eight tasks in their true TSV layouts, the forms of the hub, templates and split rules."""

from __future__ import annotations

import json
import unittest
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from prepare_case import PrepareTest, save_tokenizer

from espalier_prepare.splits import permutation

# Header (None: the file has none) and rows as the published archives have them, shortened.
PAIR = ["index", "sentence1", "sentence2", "label"]
TSV: dict[str, tuple[list[str] | None, list[list[str]]]] = {
    "cola": (None, [["gj04", "1", "", "a b"], ["gj04", "0", "*", "c"]]),
    "sst2": (["sentence", "label"], [["a b ", "0"], ['c "', "1"]]),
    "mrpc": (
        ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
        [["1", "7", "8", "a b", "c"], ["0", "7", "9", "d", "e"]],
    ),
    "qqp": (
        ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
        [["1", "3", "4", "a b", "c", "0"], ["2", "5", "6", "d", "e", "1"]],
    ),
    "stsb": (
        ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2", "score"],
        [
            ["0", "g", "f", "2012", "1", "s", "s", "a b", "c", "3.750"],
            ["1", "g", "f", "2012", "2", "s", "s", "d", "e", "0.000"],
        ],
    ),
    "mnli": (
        ["index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse"]
        + ["sentence2_parse", "sentence1", "sentence2", "label1", "gold_label"],
        [
            ["0", "1", "1n", "fiction", "( a )", "( c )", "(X)", "(Y)", "a b", "c", "neutral", "neutral"],
            ["1", "2", "2e", "fiction", "( d )", "( e )", "(X)", "(Y)", "d", "e", "neutral", "entailment"],
        ],
    ),
    "qnli": (
        ["index", "question", "sentence", "label"],
        [["0", "a b", "c", "entailment"], ["1", "d", "e", "not_entailment"]],
    ),
    "rte": (PAIR, [["0", "a b", "c", "not_entailment"], ["1", "d", "e", "entailment"]]),
}
# What the rows above mean: labels, class names, and both prompts of the first row.
LABELS: dict[str, tuple[list[float], list[str]]] = {
    "cola": ([1, 0], ["unacceptable", "acceptable"]),
    "sst2": ([0, 1], ["negative", "positive"]),
    "mrpc": ([1, 0], ["not_equivalent", "equivalent"]),
    "qqp": ([0, 1], ["not_duplicate", "duplicate"]),
    "stsb": ([3.75, 0], []),
    "mnli": ([1, 0], ["entailment", "neutral", "contradiction"]),
    "qnli": ([0, 1], ["entailment", "not_entailment"]),
    "rte": ([1, 0], ["entailment", "not_entailment"]),
}
T5 = {
    "cola": ("cola sentence: a b", "acceptable"),
    "sst2": ("sst2 sentence: a b", "negative"),
    "mrpc": ("mrpc sentence1: a b sentence2: c", "equivalent"),
    "qqp": ("qqp question1: a b question2: c", "not_duplicate"),
    "stsb": ("stsb sentence1: a b sentence2: c", "3.8"),
    "mnli": ("mnli hypothesis: c premise: a b", "neutral"),
    "qnli": ("qnli question: a b sentence: c", "entailment"),
    "rte": ("rte sentence1: a b sentence2: c", "not_entailment"),
}
DIGITS = {**{name: (prompt, str(LABELS[name][0][0])) for name, (prompt, _) in T5.items()}} | {
    "stsb": ("stsb sentence1: a b sentence2: c", "3.8"),
    "mnli": ("mnli premise: a b hypothesis c", "1"),
}
HUB = {
    "cola": ["sentence"],
    "sst2": ["sentence"],
    "mrpc": ["sentence1", "sentence2"],
    "qqp": ["question1", "question2"],
    "stsb": ["sentence1", "sentence2"],
    "mnli": ["premise", "hypothesis"],
    "qnli": ["question", "sentence"],
    "rte": ["sentence1", "sentence2"],
}
VOCABULARY = " ".join(f"{prompt} {target}" for prompt, target in [*T5.values(), *DIGITS.values()]).split()
VOCABULARY += ["positive", "unacceptable", "not_equivalent", "duplicate", "not_entailment", "0", "0.0", '"', "1"]


def hub_rows(task: str) -> list[dict[str, Any]]:
    """The same rows as the hub has them."""
    texts = [["a b", "c"], ["d", "e"]] if len(HUB[task]) == 2 else [["a b"], ["c" if task == "cola" else 'c "']]
    texts[0][0] += " " if task == "sst2" else ""
    return [
        dict(zip(HUB[task], row, strict=True)) | {"label": label, "idx": index}
        for index, (row, label) in enumerate(zip(texts, LABELS[task][0], strict=True))
    ]


class Glue(PrepareTest):
    def setUp(self) -> None:
        super().setUp()
        save_tokenizer(self.tokenizer, words=VOCABULARY)
        self.glue = self.folder / "GLUE"

    def write_tsv(self, task: str, name: str, rows: Sequence[Sequence[str]] | None = None) -> Path:
        header, usual = TSV[task]
        self.glue.mkdir(exist_ok=True)
        lines = ([header] if header else []) + list(usual if rows is None else rows)
        path = self.glue / f"{name}.tsv"
        path.write_text("".join("\t".join(line) + "\n" for line in lines))
        return path

    def prepare_task(self, task: str, *options: object) -> None:
        self.prepared("--dataset", task, "--folder", self.glue, *options)

    def contents(self, *, target: bool = False) -> Any:
        arrays = ["input_ids", "target_ids"] if target else ["input_ids", "labels"]
        return [self.array(split, name).tolist() for split in ("train", "validation") for name in arrays]

    def test_every_task_as_distributed_and_as_on_the_hub_is_one_dataset_for_an_encoder(self) -> None:
        for task, (labels, names) in LABELS.items():
            with self.subTest(task):
                self.glue = self.folder / task
                self.write_tsv(task, "train")
                for name in ("dev_matched", "dev_mismatched") if task == "mnli" else ("dev",):
                    self.write_tsv(task, name)
                self.prepare_task(task)
                self.assertEqual(self.labels("train").tolist(), labels)
                self.assertEqual(json.loads(self.attribute("label_names")), names)
                self.assertEqual(self.attribute("task"), "classification" if names else "regression")
                pair = "[CLS] a b [SEP] c [SEP]" if len(HUB[task]) == 2 else "[CLS] a b [SEP]"
                self.assertEqual(self.words("validation")[0], pair)
                expected = self.contents()

                for form in ("jsonl", "parquet"):
                    self.glue = self.folder / f"{task}_{form}"
                    self.glue.mkdir()
                    for split in (
                        "train",
                        *(["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]),
                    ):
                        if form == "jsonl":
                            text = "".join(json.dumps(row) + "\n" for row in hub_rows(task))
                            (self.glue / f"{split}.jsonl").write_text(text)
                        else:
                            table = pyarrow.Table.from_pylist(hub_rows(task))
                            pyarrow.parquet.write_table(table, self.glue / f"{split}-00000-of-00001.parquet")
                    self.prepare_task(task)
                    self.assertEqual(self.contents(), expected)
                    self.assertEqual(self.ids("train"), ["0", "1"])

    def test_every_task_is_text_to_text_as_t5_and_lst_have_it(self) -> None:
        save_tokenizer(self.tokenizer, words=VOCABULARY, template="t5")
        for task in TSV:
            self.glue = self.folder / task
            self.write_tsv(task, "train")
            for template, expected in (("t5", T5), ("t5-digits", DIGITS)):
                with self.subTest(task, template=template):
                    self.prepare_task(task, "--template", template)
                    self.assertEqual(self.attribute("task"), "seq2seq")
                    self.assertEqual(self.words("train")[0], expected[task][0] + " </s>")
                    self.assertEqual(
                        self.words("train", "target_ids", "target_offsets")[0], expected[task][1] + " </s>"
                    )
                    self.assertEqual(self.attribute("num_labels"), 0)
                    digits = ["0", "1", "2"][: len(LABELS[task][1])]
                    names = digits if template == "t5-digits" else LABELS[task][1]
                    self.assertEqual(json.loads(self.attribute("label_names")), names)

    def test_the_same_folder_elsewhere_gives_the_same_bytes(self) -> None:
        self.write_tsv("rte", "train")
        self.prepare_task("rte")
        first = self.output.read_bytes()
        self.glue = self.glue.rename(self.folder / "elsewhere")
        self.prepare_task("rte")
        self.assertEqual(self.output.read_bytes(), first)
        self.assertEqual(json.loads(self.attribute("prepare_options"))["files"], {"train": ["train.tsv"]})

    def test_scores_are_written_in_steps_of_a_fifth(self) -> None:
        save_tokenizer(self.tokenizer, words=["0.0", "0.2", "2.6", "5.0"], template="t5")
        scores = ["0.09", "0.11", "2.5", "2.501", "2.69", "5"]
        self.write_tsv("stsb", "train", [[*["x"] * 7, "a", "b", score] for score in scores])
        self.prepare_task("stsb", "--template", "t5")
        targets = [target.split()[0] for target in self.words("train", "target_ids", "target_offsets")]
        # 2.5 lies between 2.4 and 2.6: the even number of fifths wins, as numpy rounds.
        self.assertEqual([target for target in targets if target != "[UNK]"], ["0.0", "0.2", "2.6", "2.6", "5.0"])
        self.assertEqual(targets[2], "[UNK]")

    def test_mnli_keeps_both_validation_sets(self) -> None:
        self.write_tsv("mnli", "train")
        usual = TSV["mnli"][1][0]
        matched, mismatched = ([[*usual[:8], text, "c", *usual[10:]]] for text in ("f", "g"))
        self.write_tsv("mnli", "dev_matched", matched)
        self.write_tsv("mnli", "dev_mismatched", mismatched)
        for rule, (validation, test) in {"published": "fg", "lst": "gf", "mismatched": "gf"}.items():
            self.prepare_task("mnli", "--split-rule", rule)
            self.assertEqual(self.words("validation"), [f"[CLS] {validation} [SEP] c [SEP]"])
            self.assertEqual(self.words("test"), [f"[CLS] {test} [SEP] c [SEP]"])

    def test_permutations_are_those_of_torch(self) -> None:
        for size, seed in ((1, 42), (2, 42), (277, 42), (1043, 42), (67349, 42), (277, 3)):
            generator = torch.Generator()
            generator.manual_seed(seed)
            self.assertEqual(permutation(size, seed), torch.randperm(size, generator=generator).tolist())

    def test_small_tasks_halve_their_validation_rows(self) -> None:
        self.write_tsv("rte", "train")
        self.write_tsv("rte", "dev", [[str(index), "a", "b", "entailment"] for index in range(277)])
        order = torch.randperm(277, generator=torch.Generator().manual_seed(42)).tolist()
        for rule in ("lst", "halve-validation"):
            self.prepare_task("rte", "--split-rule", rule)
            self.assertEqual(self.ids("validation"), [str(index) for index in sorted(order[:138])])
            self.assertEqual(self.ids("test"), [str(index) for index in sorted(order[138:])])
            self.assertEqual(self.ids("train"), ["0", "1"])

    def test_large_tasks_hold_training_rows_out(self) -> None:
        self.write_tsv("qnli", "train", [[str(index), "a", "b", "entailment"] for index in range(1500)])
        self.write_tsv("qnli", "dev")
        order = torch.randperm(1500, generator=torch.Generator().manual_seed(42)).tolist()
        self.prepare_task("qnli", "--split-rule", "lst")
        self.assertEqual(self.ids("validation"), [str(index) for index in sorted(order[:1000])])
        self.assertEqual(self.ids("train"), [str(index) for index in sorted(order[1000:])])
        self.assertEqual(self.words("test"), ["[CLS] a b [SEP] c [SEP]", "[CLS] d [SEP] e [SEP]"])

    def test_malformed_rows_are_all_named_and_counted(self) -> None:
        good = TSV["rte"][1][0]
        rows = [good, ["1", "", "e", "entailment"], ["2", "d", "e", "maybe"], ["3", "d", "e"], good]
        path = self.write_tsv("rte", "train", rows)
        path.write_bytes(path.read_bytes() + b"5\td\xff\te\tentailment\n")
        arguments = ("--dataset", "rte", "--folder", self.glue)
        stderr = self.refused(*arguments)
        self.expect(
            stderr,
            f"{path}:3: expected text in column 'sentence1'",
            f"{path}:4: expected a label out of ['entailment', 'not_entailment'], found 'maybe'",
            f"{path}:5: expected 4 fields",
            f"{path}:7: expected UTF-8, found the byte 0xff",
            "4 malformed rows (train.tsv 4)",
            "--drop-malformed",
        )
        code, stdout, stderr = self.prepare(*arguments, "--drop-malformed")
        self.assertEqual(code, 0, stderr)
        self.expect(stderr, f"left out: {path}:4: expected a label")
        self.expect(stdout, "train.tsv: left out 4 malformed rows")
        self.assertEqual(self.ids("train"), ["0", "0"])
        counts = json.loads(self.attribute("prepare_counts"))
        self.assertEqual(counts["malformed"], {"train.tsv": 4})
        self.assertEqual(counts["train"], {"rows": 2, "dropped": 0, "truncated": 0})

    def test_labels_that_are_missing_or_out_of_range_are_named(self) -> None:
        cases = [
            ("cola", [["gj04", "2", "", "a"]], ":1: expected a label out of ['unacceptable', 'acceptable'], found '2'"),
            ("stsb", [[*["x"] * 7, "a", "b", "5.1"]], ":2: expected a finite number in [0, 5] as label, found '5.1'"),
            ("cola", [["1", "", "a"]], ":1: expected 4 fields as the dataset has, found 3"),
        ]
        for task, rows, piece in cases:
            with self.subTest(task):
                path = self.write_tsv(task, "train", rows)
                self.expect(self.refused("--dataset", task, "--folder", self.glue), str(path) + piece)
        (self.glue / "train.tsv").unlink()
        path = self.glue / "train.jsonl"
        path.write_text('{"sentence": "a", "label": -1, "idx": 0}\n{"sentence": "b", "idx": 1}\n')
        stderr = self.refused("--dataset", "sst2", "--folder", self.glue)
        self.expect(stderr, f"{path}:1: expected a label out of ['negative', 'positive'], found '-1'")
        self.expect(stderr, f"{path}:2: expected a column out of ['label'] (label)")

    def test_folders_that_are_not_what_they_are_called(self) -> None:
        self.write_tsv("qqp", "train")
        self.expect(self.refused("--dataset", "rte", "--folder", self.glue), "train.tsv:1: expected a column out of")
        self.expect(self.refused("--dataset", "rte", "--folder", self.glue / "none"), "expected a folder (--folder)")
        (self.glue / "train.tsv").rename(self.glue / "training.tsv")
        stderr = self.refused("--dataset", "qqp", "--folder", self.glue)
        self.expect(stderr, "expected a file out of ['train.tsv', 'train.jsonl'", "found ['training.tsv']")
        (self.glue / "train.parquet").write_bytes(b"PAR1 and then nothing")
        self.expect(self.refused("--dataset", "qqp", "--folder", self.glue), "train.parquet: expected a Parquet file")

    def test_options_that_contradict_the_dataset(self) -> None:
        self.write_tsv("rte", "train")
        arguments = ("--dataset", "rte", "--folder", self.glue)
        cases = [
            (("--text", "sentence1"), "--text: expected without --dataset"),
            (("--no-header",), "--no-header: expected without --dataset"),
            (("--task", "seq2seq"), "expected one of ['classification'] for --dataset rte and --template encoder"),
            (("--template", "t5", "--task", "classification"), "expected one of ['seq2seq']"),
            (("--split-rule", "mismatched"), "expected a mismatched validation set"),
            (("--split-rule", "lst"), "expected train and validation rows"),
        ]
        for options, piece in cases:
            with self.subTest(piece):
                self.expect(self.refused(*arguments, *options), piece)
        self.expect(self.refused("--folder", self.glue), "--folder: expected together with --dataset")


if __name__ == "__main__":
    unittest.main()
