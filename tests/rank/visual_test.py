# SPDX-License-Identifier: Apache-2.0
"""Questions about images through the whole program: prepared with features, trained, evaluated, generated and scored, on other ranks
each time."""

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
MODEL = ROOT / "tests" / "golden" / "clip_t5_1"  # 60 tokens, features of width 14
ESPALIER, MPIEXEC = sys.argv.pop(1), sys.argv.pop(1)
END = json.loads((MODEL / "config.json").read_text())["eos_token_id"]
COLORS = ["red", "green", "blue", "black"]


def run(*command: object) -> str:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if result.returncode != 0:
        raise AssertionError(f"{command}\nended with {result.returncode}:\n{result.stdout}{result.stderr}")
    return result.stdout


def espalier(stages: int, replicas: int, *words: object) -> str:
    ranks = stages * replicas
    launcher = [MPIEXEC, "-np", ranks] if ranks > 1 else []
    return run(*launcher, ESPALIER, *words, f"--parallel.stages={stages}", f"--parallel.replicas={replicas}", "--parallel.threads=1")


class Visual(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)
        words = ["<pad>", "[UNK]", "vqa:", *COLORS, *(f"w{number}" for number in range(60))][:59]
        words.insert(END, "</s>")
        tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
        tokenizer.add_special_tokens(["</s>", "<pad>"])
        (self.folder / "tokenizer").mkdir()
        tokenizer.save(str(self.folder / "tokenizer" / "tokenizer.json"))

    def prepare(self) -> Path:
        """The answer is the colour of the image, whatever is asked."""
        random = np.random.default_rng(3)
        with h5py.File(self.folder / "features.h5", "w") as file:
            for image in range(len(COLORS)):
                file[f"{image}/features"] = random.standard_normal((3, 14)).astype(np.float32)
                file[f"{image}/boxes"] = np.array([[0, 0, 60, 40], [10, 5, 30, 40], [0, 20, 60, 30]], np.float32)
                file[f"{image}/img_w"], file[f"{image}/img_h"] = 60, 40
        for split, rows in (("train", 48), ("validation", 15)):
            images = random.integers(0, len(COLORS), rows)
            questions = [{"question_id": row, "image_id": int(image), "question": " ".join(f"w{word}" for word in random.integers(0, 20, 3))}
                         for row, image in enumerate(images)]
            answers = [{"question_id": row, "answers": [{"answer": COLORS[image]}] * 7 + [{"answer": "w1"}] * 3}
                       for row, image in enumerate(images)]
            (self.folder / f"{split}_questions.json").write_text(json.dumps({"questions": questions}))
            (self.folder / f"{split}_annotations.json").write_text(json.dumps({"annotations": answers}))
        run(sys.executable, ROOT / "tools" / "prepare.py", "--dataset", "vqa", "--train", self.folder / "train_questions.json",
            "--validation", self.folder / "validation_questions.json", "--features", self.folder / "features.h5",
            "--tokenizer", self.folder / "tokenizer", "--pad-token-id", "0", "--output", self.folder / "vqa.h5", "--quiet")
        return self.folder / "vqa.h5"

    def test_learns_to_answer_from_what_it_sees(self) -> None:
        dataset, run_folder = self.prepare(), self.folder / "run"
        espalier(2, 2, "train", f"--model.path={MODEL}", f"--data.path={dataset}", f"--run.folder={run_folder}", "--peft.method=full",
                 "--data.global_batch_size=12", "--data.micro_batch_size=3", "--train.max_steps=150", "--optimizer.learning_rate=1e-2")
        records = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
        losses = [record["loss"] for record in records if record["kind"] == "train"]
        self.assertLess(losses[-1], 0.3 * losses[0])
        metrics = json.loads(espalier(3, 1, "evaluate", f"--run={run_folder}", "--split=validation"))
        texts = []
        for stages in (1, 3):
            texts.append(self.folder / f"texts{stages}.jsonl")
            espalier(stages, 1, "generate", f"--run={run_folder}", "--split=validation", f"--output={texts[-1]}", "--generate.num_beams=2",
                     "--generate.max_new_tokens=4")
        self.assertEqual(texts[0].read_text(), texts[1].read_text())
        scored = json.loads(run(sys.executable, ROOT / "tools" / "score.py", "--generated", texts[0], "--dataset", dataset,
                                "--split", "validation", "--tokenizer", self.folder / "tokenizer"))
        print(f"loss {losses[0]:.2f} to {losses[-1]:.2f}, validation {metrics}, {scored['metrics']}")
        self.assertEqual((scored["rows"], list(scored["metrics"])), (15, ["vqa_accuracy"]))
        # The questions say nothing: the colour asked about most is right for less than half of them.
        self.assertGreater(scored["metrics"]["vqa_accuracy"], 0.8)
        self.assertGreater(metrics["token_accuracy"], 0.8)


if __name__ == "__main__":
    unittest.main()
