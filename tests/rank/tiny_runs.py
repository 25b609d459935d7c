# SPDX-License-Identifier: Apache-2.0
"""Small datasets, a few steps of training, and predictions of the program: what tests of its exports start from."""

import json
import subprocess
from pathlib import Path

import h5py
import numpy as np

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
ROWS = {"train": 24, "validation": 8, "test": 8}
LONGEST = 9


def run(words: list[str], expected_code: int = 0) -> str:
    result = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != expected_code:
        raise AssertionError(f"{' '.join(words)}\nended with {result.returncode}, expected {expected_code}:\n{result.stdout}")
    return result.stdout


def write_dataset(file: Path, task: str, model: Path) -> Path:
    """Random rows of random lengths, or random images, as docs/dataset_format.md has them."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    generator = np.random.default_rng(3)
    is_image, num_labels = task == "image_classification", 3 if "classification" in task else 0
    vocab_size = 0 if is_image else config["vocab_size"]
    with h5py.File(file, "w") as output:
        output.attrs.update({"format_version": 1, "task": task, "num_labels": num_labels, "vocab_size": vocab_size, "pad_token_id": 0,
                             "label_names": json.dumps(["bad", "fair", "good"][:num_labels]), "max_length": 0 if is_image else LONGEST,
                             "tokenizer_digest": "" if is_image else "sha256:tiny", "source_digest": "sha256:tiny"})
        if is_image:
            channels, size = config["num_channels"], config["image_size"]
            output.attrs.update({"pixel_mean": json.dumps([0.5] * channels), "pixel_std": json.dumps([0.5] * channels)})
        for split, rows in ROWS.items():
            group = output.create_group(split)
            if is_image:
                group["pixels"] = generator.integers(0, 256, (rows, size, size, channels), dtype=np.uint8)
            else:
                lengths = generator.integers(4, LONGEST + 1, rows)
                ids = draw_ids(generator, config, lengths.sum()).astype(np.int32)
                ids[lengths.cumsum() - 1] = end_of(config)
                group["input_ids"] = ids
                group["input_offsets"] = np.concatenate([[0], lengths.cumsum()])
            if "classification" in task:
                group["labels"] = generator.integers(0, num_labels, rows)
            elif task == "causal_lm":
                group["prompt_lengths"] = np.full(rows, 2)
            else:
                group["target_ids"] = generator.integers(5, vocab_size, 4 * rows, dtype=np.int32)
                group["target_offsets"] = np.arange(0, 4 * rows + 1, 4)
            group["id_bytes"] = np.full(rows, ord("r"), np.uint8)
            group["id_offsets"] = np.arange(rows + 1)
    return file


def end_of(config: dict) -> int:
    """The token that ends a text, which heads on encoder-decoders look for."""
    return config["eos_token_id"] if config["model_type"] in ("t5", "bart") else 5


def draw_ids(generator: np.random.Generator, config: dict, shape: int | tuple[int, int]) -> np.ndarray:
    ids = generator.integers(6, config["vocab_size"], shape)
    return np.where(ids == end_of(config), 6, ids)


def make_inputs(model: Path, task: str) -> dict[str, np.ndarray]:
    """One padded batch under the names of `transformers`."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    generator = np.random.default_rng(4)
    if config["model_type"] == "vit":
        shape = (5, config["num_channels"], config["image_size"], config["image_size"])
        return {"pixel_values": generator.standard_normal(shape, dtype=np.float32)}
    inputs = {"input_ids": draw_ids(generator, config, (5, LONGEST))}
    lengths = np.array([LONGEST, 4, 7, 5, LONGEST])
    inputs["attention_mask"] = (np.arange(LONGEST) < lengths[:, None]).astype(np.int64)
    inputs["input_ids"][np.arange(5), lengths - 1] = end_of(config)
    inputs["input_ids"][inputs["attention_mask"] == 0] = config.get("pad_token_id") or 0
    if task == "seq2seq":
        inputs["decoder_input_ids"] = generator.integers(5, config["vocab_size"], (5, 4))
        inputs["decoder_input_ids"][:, 0] = config.get("decoder_start_token_id") or 0
    return inputs


class Program:
    """The program on one rank, with files in `folder`."""

    def __init__(self, espalier: str, folder: Path) -> None:
        self.espalier, self.folder = espalier, folder

    def train(self, name: str, model: Path, task: str, *words: str, steps: int = 3, rate: float = 2e-2) -> Path:
        """Large steps: what they change must be seen in the logits."""
        dataset = self.folder / f"{model.name}-{task}.h5"
        if not dataset.exists():
            write_dataset(dataset, task, model)
        folder = self.folder / name
        run([self.espalier, "train", f"--model.path={model}", f"--data.path={dataset}", f"--run.folder={folder}",
             "--data.global_batch_size=8", "--data.micro_batch_size=4", f"--train.max_steps={steps}", f"--optimizer.learning_rate={rate}",
             "--train.restore_best=false", "--parallel.threads=1", *words])
        return folder

    def export(self, run_folder: Path, *words: str, expected_code: int = 0) -> Path | str:
        output = run_folder / "-".join(["export", *words]).replace("/", "_")
        text = run([self.espalier, "export", f"--run={run_folder}", f"--output={output}", "--weights=last", *words], expected_code)
        return text if expected_code else output

    def predict(self, model: Path, inputs: dict[str, np.ndarray], *words: str) -> np.ndarray:
        arrays, output = self.folder / "in.h5", self.folder / "out.h5"
        with h5py.File(arrays, "w") as file:
            for name, array in inputs.items():
                file[name] = array
        run([self.espalier, "predict", f"--model.path={model}", f"--inputs={arrays}", f"--output={output}", "--parallel.threads=1", *words])
        with h5py.File(output) as file:
            return file["logits"][()]
