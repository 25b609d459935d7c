# SPDX-License-Identifier: Apache-2.0
"""`espalier predict` and `generate` on plain arrays equal transformers (tests/golden/), alone and on stages under mpirun."""

import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import h5py
import numpy as np
from safetensors import safe_open

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
ESPALIER, MPIEXEC = sys.argv.pop(1), sys.argv.pop(1)
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values", "labels", "vis_feats", "vis_boxes", "img_order_ids",
          "obj_order_ids")


def read_golden(folder: Path) -> dict[str, np.ndarray]:
    with safe_open(folder / "golden.safetensors", "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def run(command: str, folder: Path, golden: dict[str, np.ndarray], stages: int, output: Path, *options: str) -> None:
    inputs = output.parent / "in.h5"
    with h5py.File(inputs, "w") as file:
        for name in INPUTS:
            if name in golden:
                file[name] = golden[name]
    launcher = [MPIEXEC, "-np", str(stages)] if stages > 1 else []
    words = [*launcher, ESPALIER, command, f"--model.path={folder}", f"--inputs={inputs}", f"--output={output}",
             f"--parallel.stages={stages}", "--parallel.threads=1", *options]
    result = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)
    if result.returncode != 0:
        raise AssertionError(f"{' '.join(words)} ended with {result.returncode}:\n{result.stdout}")


def predict(folder: Path, golden: dict[str, np.ndarray], stages: int, scratch: Path) -> dict[str, np.ndarray]:
    run("predict", folder, golden, stages, scratch / "out.h5")
    with h5py.File(scratch / "out.h5") as file:
        return {name: file[name][()] for name in file}


class Predict(unittest.TestCase):
    def test_equals_transformers_on_one_two_and_three_stages(self) -> None:
        # One model of each family, and a pooled head behind a decoder; parity_test.cpp goes through them all.
        folders = sorted(path for path in GOLDEN.iterdir()
                         if (path.name.endswith("_1") and (path / "config.json").is_file()) or path.name == "t5_4")
        self.assertGreaterEqual(len(folders), 9)
        for folder in folders:
            golden = read_golden(folder)
            blocks = sum(name.startswith(("after.encoder.", "after.decoder.")) for name in golden)
            is_encoder_decoder = "after.decoder_embedding" in golden
            attended = np.ones(golden["last_hidden_state"].shape[:2], bool)
            if "attention_mask" in golden and not is_encoder_decoder:
                attended = golden["attention_mask"].astype(bool)
            for stages in range(1, min(3, blocks) + 1):
                with self.subTest(folder=folder.name, stages=stages), tempfile.TemporaryDirectory() as scratch:
                    found = predict(folder, golden, stages, Path(scratch))
                    last = golden["last_hidden_state"]
                    self.assertLess(relative_error(found["last_hidden_state"][attended], last[attended]), 1e-5)
                    if "logits" not in golden:  # a bare backbone
                        continue
                    rows = attended if golden["logits"].ndim == 3 else slice(None)
                    self.assertLess(relative_error(found["logits"][rows], golden["logits"][rows]), 1e-5)
                    self.assertLess(abs(float(found["loss"]) / float(golden["loss"].reshape(())) - 1), 1e-5)


class Generate(unittest.TestCase):
    def test_writes_the_tokens_of_transformers_on_one_and_two_stages(self) -> None:
        for name, stages in (("t5_1", 2), ("llama_1", 1), ("gpt2_1", 2)):
            with self.subTest(folder=name, stages=stages), tempfile.TemporaryDirectory() as scratch:
                golden = read_golden(GOLDEN / name)
                texts = Path(scratch) / "texts.jsonl"
                run("generate", GOLDEN / name, golden, stages, texts, "--generate.max_new_tokens=8", "--generate.num_beams=4",
                    "--generate.length_penalty=0.7")
                found = [json.loads(line) for line in texts.read_text(encoding="ascii").splitlines()]
                self.assertEqual([line["row"] for line in found], list(range(len(golden["input_ids"]))))
                expected = [[int(token) for token in row if token >= 0] for row in golden["generated.beams"]]
                self.assertEqual([line["token_ids"] for line in found], expected)


if __name__ == "__main__":
    unittest.main()
