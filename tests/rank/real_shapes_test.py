# SPDX-License-Identifier: Apache-2.0
"""The true shapes of published models: `inspect` counts them, and `train` takes one step of LoRA on random weights."""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

ROOT = Path(__file__).resolve().parents[2]
ESPALIER = sys.argv.pop(1)


def t5(width: int, heads: int, feed_forward: int, layers: int, head_width: int = 64) -> dict:
    return dict(model_type="t5", architectures=["T5ForConditionalGeneration"], d_model=width, num_heads=heads, d_kv=head_width,
                d_ff=feed_forward, num_layers=layers, vocab_size=32128)


def bert(model_type: str, width: int, heads: int, layers: int, vocabulary: int, positions: int, types: int) -> dict:
    return dict(model_type=model_type, hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width,
                num_hidden_layers=layers, vocab_size=vocabulary, max_position_embeddings=positions, type_vocab_size=types,
                pad_token_id=1)


def opt(width: int, heads: int, layers: int) -> dict:
    return dict(model_type="opt", hidden_size=width, num_attention_heads=heads, ffn_dim=4 * width, num_hidden_layers=layers,
                vocab_size=50272, max_position_embeddings=2048, word_embed_proj_dim=width)


BART_LARGE = dict(model_type="bart", d_model=1024, encoder_layers=12, decoder_layers=12, encoder_attention_heads=16,
                  decoder_attention_heads=16, encoder_ffn_dim=4096, decoder_ffn_dim=4096, vocab_size=50265,
                  max_position_embeddings=1024)
VIT_BASE = dict(model_type="vit", hidden_size=768, num_attention_heads=12, intermediate_size=3072, num_hidden_layers=12,
                image_size=224, patch_size=16, num_channels=3)
GPT2_MEDIUM = dict(model_type="gpt2", n_embd=1024, n_head=16, n_layer=24, n_positions=1024, vocab_size=50257)
TRAINED = {  # config and task
    "t5-base": (t5(768, 12, 3072, 12), "seq2seq"),
    "t5-large": (t5(1024, 16, 4096, 24), "seq2seq"),
    "bert-base": (bert("bert", 768, 12, 12, 30522, 512, 2), "classification"),
    "roberta-large": (bert("roberta", 1024, 16, 24, 50265, 514, 1), "classification"),
    "bart-large": (BART_LARGE, "seq2seq"),
    "opt-1.3b": (opt(2048, 32, 24), "causal_lm"),
    "gpt2-medium": (GPT2_MEDIUM, "causal_lm"),
    "vit-base": (VIT_BASE, "image_classification"),
}
COUNTED = {"t5-3b": (t5(1024, 32, 16384, 24, 128), 2_851_598_336), "opt-6.7b": (opt(4096, 32, 32), 6_658_473_984)}


def run(*words: str) -> str:
    result = subprocess.run(words, capture_output=True, text=True)
    if result.returncode != 0:
        raise AssertionError(f"{' '.join(words)} ended with {result.returncode}:\n{result.stdout}{result.stderr}")
    return result.stdout


class RealShapes(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        cls.folder = Path(scratch.name)
        vocabulary = ["<pad>", "</s>", *(f"w{i}" for i in range(50))]
        tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<pad>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        (cls.folder / "tokenizer").mkdir()
        tokenizer.save(str(cls.folder / "tokenizer" / "tokenizer.json"))
        rows = "".join(f"w{i} w{i + 1} w{i + 2}\tw{i}\n" for i in range(8))
        (cls.folder / "rows.tsv").write_text("text\tanswer\n" + rows)
        columns = {"classification": ["--text", "text", "--label", "answer"], "seq2seq": ["--text", "text", "--target", "answer"],
                   "causal_lm": ["--prompt", "{text}", "--target", "answer"]}
        for task, options in columns.items():
            run(sys.executable, str(ROOT / "tools" / "prepare.py"), "--task", task, "--train", str(cls.folder / "rows.tsv"), *options,
                "--tokenizer", str(cls.folder / "tokenizer"), "--pad-token-id", "0", "--eos-token-id", "1", "--max-length", "8",
                "--output", str(cls.folder / f"{task}.h5"), "--quiet")
        for number in range(4):
            of_class = cls.folder / "images" / f"class{number % 2}"
            of_class.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (60 * number, 100, 0)).save(of_class / f"{number}.png")
        run(sys.executable, str(ROOT / "tools" / "prepare.py"), "--dataset", "image_folder", "--folder", str(cls.folder / "images"),
            "--output", str(cls.folder / "image_classification.h5"), "--quiet")

    def write_config(self, name: str, config: dict) -> str:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        return str(folder)

    def test_counts_models_too_large_to_make(self) -> None:
        for name, (config, parameters) in COUNTED.items():
            self.assertRegex(run(ESPALIER, "inspect", self.write_config(name, config)), rf"parameters +{parameters}\b", name)

    def test_takes_a_step_at_the_true_shapes(self) -> None:
        for name, (config, task) in TRAINED.items():
            with self.subTest(model=name):
                run_folder = self.folder / f"run_{name}"
                run(ESPALIER, "train", "--model.path", self.write_config(name, config), "--model.random_weights",
                    "--data.path", str(self.folder / f"{task}.h5"), "--data.global_batch_size", "2", "--data.micro_batch_size", "2",
                    "--peft.method", "lora", "--train.max_steps", "1", "--run.folder", str(run_folder))
                summary = json.loads((run_folder / "summary.json").read_text())
                print(name, summary["frozen_parameters"], "frozen,", max(summary["peak_allocated_bytes"]) >> 20, "MiB peak")
                self.assertEqual(summary["steps"], 1)
                self.assertGreater(summary["frozen_parameters"], 80e6)


if __name__ == "__main__":
    unittest.main()
