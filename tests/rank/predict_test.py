# SPDX-License-Identifier: Apache-2.0
"""`espalier predict` on plain arrays equals transformers (tests/golden/), alone and on 2 and 3 stages under mpirun."""

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
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values", "labels")


def read_golden(folder: Path) -> dict[str, np.ndarray]:
    with safe_open(folder / "golden.safetensors", "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def predict(folder: Path, golden: dict[str, np.ndarray], stages: int, scratch: Path) -> dict[str, np.ndarray]:
    with h5py.File(scratch / "in.h5", "w") as file:
        for name in INPUTS:
            if name in golden:
                file[name] = golden[name]
    launcher = [MPIEXEC, "-np", str(stages)] if stages > 1 else []
    command = [*launcher, ESPALIER, "predict", f"--model.path={folder}", f"--inputs={scratch / 'in.h5'}",
               f"--output={scratch / 'out.h5'}", f"--parallel.stages={stages}", "--parallel.threads=1"]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)
    if result.returncode != 0:
        raise AssertionError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout}")
    with h5py.File(scratch / "out.h5") as file:
        return {name: file[name][()] for name in file}


class Predict(unittest.TestCase):
    def test_equals_transformers_on_one_two_and_three_stages(self) -> None:
        folders = sorted(path for path in GOLDEN.iterdir() if path.is_dir())
        self.assertGreaterEqual(len(folders), 6)
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


if __name__ == "__main__":
    unittest.main()
