# SPDX-License-Identifier: Apache-2.0
"""tools/vtab_means.py: group means against values worked out by hand, and what is refused."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))
from vtab_means import GROUPS, TASKS, main  # noqa: E402


class VtabMeansTest(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)

    def run_main(self, *words: str) -> tuple[int, str, str]:
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = main(words)
        return code, stdout.getvalue(), stderr.getvalue()

    def write(self, name: str, record: object) -> str:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record))
        return str(path)

    def test_the_mean_is_of_groups_and_not_of_tasks(self) -> None:
        self.assertEqual([len(tasks) for tasks in GROUPS.values()], [7, 4, 8])
        words = []
        for task in TASKS:
            accuracy = 0.2 if task in GROUPS["natural"] else 0.5 if task in GROUPS["specialised"] else 1
            if task == "cifar":
                accuracy = 0.9
            words.append(self.write(f"{task}.json", {"accuracy": accuracy}))
        code, stdout, stderr = self.run_main(*words)
        self.assertEqual(code, 0, stderr)
        result = json.loads(stdout)
        natural = (6 * 0.2 + 0.9) / 7
        self.assertEqual(result["groups"], {"natural": natural, "specialised": 0.5, "structured": 1})
        self.assertAlmostEqual(result["mean"], (natural + 1.5) / 3)
        self.assertAlmostEqual(result["tasks_mean"], (6 * 0.2 + 0.9 + 4 * 0.5 + 8) / 19)

    def test_run_folders_count_by_their_test_split_and_groups_only_when_whole(self) -> None:
        self.write("cifar/summary.json", {"test": {"accuracy": 0.25}, "accuracy": 1})
        others = [f"{task}={self.write('x.json', {'accuracy': 0.5})}" for task in GROUPS["specialised"]]
        code, stdout, _ = self.run_main(str(self.folder / "cifar"), *others)
        self.assertEqual(code, 0)
        result = json.loads(stdout)
        self.assertEqual(result["tasks"]["cifar"], 0.25)
        self.assertEqual(result["groups"], {"specialised": 0.5})
        self.assertEqual(len(result["missing"]), 14)
        self.assertNotIn("mean", result)

    def test_refuses_other_tasks_repeated_ones_and_files_without_accuracy(self) -> None:
        good = self.write("cifar.json", {"accuracy": 0.5})
        for words, piece in (
            ([self.write("mnist.json", {"accuracy": 1})], "'mnist'"),
            ([good, f"cifar={good}"], "cifar again"),
            ([self.write("dtd.json", {"f1": 1})], "found None"),
            ([self.write("kitti.json", {"accuracy": 70.5})], "found 70.5"),
            ([str(self.folder / "svhn")], "svhn"),
        ):
            code, _, stderr = self.run_main(*words)
            self.assertEqual(code, 2)
            self.assertIn(piece, stderr)


if __name__ == "__main__":
    unittest.main()
