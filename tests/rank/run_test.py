# SPDX-License-Identifier: Apache-2.0
"""A run of the program on 2 stages x 2 replicas, then used on other ranks: evaluated, predicted, exported, stopped and resumed."""

import itertools
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import h5py
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "golden" / "bert_1"  # 3 blocks, 60 tokens, dropout 0.1
ESPALIER, MPIEXEC = sys.argv.pop(1), sys.argv.pop(1)
STOPPED = 75
STEPS = 8
TOLERANCE = 1e-6


def run(command: list[str], expected_code: int = 0) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != expected_code:
        raise AssertionError(
            f"{' '.join(command)}\nended with {result.returncode}, expected {expected_code}:\n{result.stdout}{result.stderr}"
        )
    return result.stdout


def run_and_read_errors(command: list[str], expected_code: int) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != expected_code:
        raise AssertionError(f"{' '.join(command)}\nended with {result.returncode}, expected {expected_code}:\n{result.stderr}")
    return result.stderr


def espalier(stages: int, replicas: int, *words: str, expected_code: int = 0) -> str:
    ranks = stages * replicas
    launcher = [MPIEXEC, "-np", str(ranks)] if ranks > 1 else []
    layout = [f"--parallel.stages={stages}", f"--parallel.replicas={replicas}", "--parallel.threads=1"]
    return run([*launcher, ESPALIER, *words, *layout], expected_code)


def make_dataset(folder: Path) -> Path:
    """Rows of 1 to 14 random words; the label says which half of the vocabulary the first one is from."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(50))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    generator = np.random.default_rng(5)
    files = []
    for split, num_rows in (("train", 50), ("validation", 21), ("test", 23)):
        rows = ["text\tlabel"]
        for _ in range(num_rows):
            words = generator.integers(0, 50, generator.integers(1, 15))
            rows.append(" ".join(f"w{word}" for word in words) + f"\t{int(words[0] >= 25)}")
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")
        files += [f"--{split}", str(folder / f"{split}.tsv")]
    output = folder / "data.h5"
    run([sys.executable, str(ROOT / "tools" / "prepare.py"), *files, "--text", "text", "--label", "label",
         "--tokenizer", str(folder / "tokenizer"), "--pad-token-id", "0", "--max-length", "24", "--output", str(output), "--quiet"])
    return output


def read_logits(file: Path) -> np.ndarray:
    with h5py.File(file) as found:
        return found["logits"][()]


def losses_of(run_folder: Path) -> list[float]:
    records = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == "train"]


class Run(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        cls.folder = Path(scratch.name)
        cls.dataset = make_dataset(cls.folder)

    def train(self, method: str, name: str, stages: int, replicas: int, *words: str, rate: str = "1e-2", expected_code: int = 0) -> Path:
        folder = self.folder / f"{method}-{name}"
        espalier(stages, replicas, "train", f"--model.path={MODEL}", f"--data.path={self.dataset}", f"--run.folder={folder}",
                 f"--peft.method={method}", "--data.global_batch_size=12", "--data.micro_batch_size=3", f"--train.max_steps={STEPS}",
                 "--train.evaluate_every_steps=2", f"--optimizer.learning_rate={rate}", *words, expected_code=expected_code)
        return folder

    def predict(self, stages: int, *words: str) -> np.ndarray:
        output = self.folder / "logits.h5"
        espalier(stages, 1, "predict", "--split=validation", f"--output={output}", *words)
        logits = read_logits(output)
        output.unlink()
        return logits

    def assert_same_metrics(self, found: dict[str, float], expected: dict[str, float]) -> None:
        self.assertEqual(found.keys(), expected.keys())
        for name, value in expected.items():
            self.assertAlmostEqual(found[name], value, delta=TOLERANCE, msg=name)

    def test_gives_the_same_metrics_and_logits_on_other_ranks_and_as_an_adapter(self) -> None:
        for method in ("lst", "lora"):
            with self.subTest(method=method):
                folder = self.train(method, "whole", 2, 2)
                summary = json.loads((folder / "summary.json").read_text())
                self.assertEqual((summary["stages"], summary["replicas"], summary["steps"]), (2, 2, STEPS))
                for stages in (1, 3):
                    metrics = json.loads(espalier(stages, 1, "evaluate", f"--run={folder}", "--split=test"))
                    self.assert_same_metrics(metrics, summary["test"])

                expected = self.predict(1, f"--run={folder}")
                self.assertEqual(expected.shape, (21, 2))
                self.assertGreater(np.ptp(expected[:, 0]), 1e-3)
                np.testing.assert_allclose(self.predict(3, f"--run={folder}"), expected, rtol=0, atol=TOLERANCE)

                adapter = self.folder / f"{method}-adapter"
                run([ESPALIER, "export", f"--run={folder}", f"--output={adapter}"])
                words = (f"--model.path={MODEL}", f"--data.path={self.dataset}")
                found = self.predict(2, *words, f"--adapter={adapter}")
                np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)

    def test_gives_every_objective_an_adapter_of_its_own(self) -> None:
        words = ("--objective.wide.peft.lst.reduction=2", "--objective.wide.peft.seed=3", "--objective.narrow.peft.lst.reduction=4",
                 "--objective.narrow.optimizer.weight_decay=0.1")
        folder = self.train("lst", "joint", 2, 2, *words)
        alone = {"wide": self.train("lst", "wide", 1, 1, "--peft.lst.reduction=2", "--peft.seed=3"),
                 "narrow": self.train("lst", "narrow", 1, 1, "--peft.lst.reduction=4", "--optimizer.weight_decay=0.1")}
        summary = json.loads((folder / "summary.json").read_text())
        for objective in summary["objectives"]:
            name = objective["name"]
            expected = json.loads((alone[name] / "summary.json").read_text())
            self.assertEqual(objective["test"], expected["test"], msg=name)
            self.assertEqual((folder / "adapter" / name / "adapter.safetensors").read_bytes(),
                             (alone[name] / "adapter" / "adapter.safetensors").read_bytes(), msg=name)
            metrics = json.loads(espalier(1, 1, "evaluate", f"--run={folder}", f"--objective={name}", "--split=test"))
            self.assert_same_metrics(metrics, expected["test"])
            exported = self.folder / f"exported-{name}"
            run([ESPALIER, "export", f"--run={folder}", f"--objective={name}", f"--output={exported}"])
            self.assertEqual((exported / "adapter.safetensors").read_bytes(),
                             (folder / "adapter" / name / "adapter.safetensors").read_bytes(), msg=name)
        self.assertIn("narrow", run_and_read_errors([ESPALIER, "evaluate", f"--run={folder}"], 2))

    def test_trains_every_point_of_a_sweep_as_the_run_that_it_is_alone(self) -> None:
        ranks, rates = ("2", "4"), ("1e-2", "3e-3")
        folder = self.train("last", "sweep", 2, 2, f"--sweep.peft.last.rank={' | '.join(ranks)}",
                            f"--sweep.optimizer.learning_rate={' | '.join(rates)}")
        points = {f"rank-{rank}_learning_rate-{rate}": (rank, rate) for rank, rate in itertools.product(ranks, rates)}
        self.assertEqual({path.name for path in (folder / "adapter").iterdir()}, set(points))
        adapters = set()
        for name, (rank, rate) in points.items():
            alone = self.train("last", name, 1, 1, f"--peft.last.rank={rank}", rate=rate)
            found = (folder / "adapter" / name / "adapter.safetensors").read_bytes()
            self.assertEqual(found, (alone / "adapter" / "adapter.safetensors").read_bytes(), msg=name)
            adapters.add(found)
        self.assertEqual(len(adapters), len(points), "each point is another run")

    def test_goes_on_where_it_stopped_on_other_ranks(self) -> None:
        for method in ("lst", "lora"):
            with self.subTest(method=method):
                whole = self.train(method, "reference", 1, 1)
                folder = self.train(method, "resumed", 2, 2, "--train.stop_at_step=3", expected_code=STOPPED)
                self.assertEqual(len(losses_of(folder)), 3)
                self.assertFalse((folder / "adapter").exists())
                self.train(method, "resumed", 3, 1)
                self.assertEqual(losses_of(folder), losses_of(whole))
                summaries = [json.loads((run_folder / "summary.json").read_text()) for run_folder in (folder, whole)]
                self.assertEqual(summaries[0]["steps_this_run"], STEPS - 3)
                self.assertEqual(summaries[0]["test"], summaries[1]["test"])
                self.assertGreater(summaries[0]["checkpoint_bytes"], 12 * summaries[0]["trained_parameters"])


if __name__ == "__main__":
    unittest.main()
