#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the golden files of tests/unit/model/parity_test.cpp: tiny models with random weights as Hugging Face folders, and what
`transformers` computes with them in fp32 (embedding output, every block's hidden state, logits, loss).

    tools/make_golden.py            writes tests/golden/<family>_<n>/
    tools/make_golden.py --check    writes nothing; fails when the stored files are not what would be written
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

ROOT = Path(__file__).resolve().parent.parent
# Two machines or thread counts differ in the last bits only.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Golden:
    """One model and one padded batch."""

    name: str
    family: str
    layers: int
    width: int
    heads: int
    feed_forward: int
    activation: str
    epsilon: float
    padding: str  # left | right | none (then there is no mask either)
    labels: int  # 0: the bare backbone without pooler; 1: regression
    token_types: int = 2
    names: str = "new"  # new | old: gamma and beta, and a position_ids buffer
    stored_type: torch.dtype = torch.float32


GOLDENS = [
    Golden("bert_1", "bert", 3, 24, 3, 40, "gelu", 1e-12, "right", 2),
    Golden("bert_2", "bert", 2, 32, 4, 56, "relu", 1e-6, "left", 5),
    Golden("bert_3", "bert", 5, 16, 2, 64, "gelu_new", 1e-3, "none", 1, names="old"),
    Golden("bert_4", "bert", 3, 20, 5, 24, "silu", 1e-12, "right", 0, token_types=3, stored_type=torch.bfloat16),
    Golden("roberta_1", "roberta", 3, 24, 2, 48, "gelu", 1e-5, "right", 2, token_types=1),
    Golden("roberta_2", "roberta", 4, 18, 3, 30, "relu", 1e-5, "left", 5, token_types=1),
    Golden("roberta_3", "roberta", 1, 32, 4, 32, "gelu_new", 1e-5, "none", 1, token_types=2),
    Golden("roberta_4", "xlm-roberta", 3, 16, 1, 20, "silu", 1e-4, "left", 0, token_types=1),
]
VOCAB_SIZE = 60
POSITIONS = 24
ROWS, TOKENS = 4, 11


def draw_weights(model: torch.nn.Module, random: numpy.random.Generator) -> None:
    """Draws every weight so large that attention is far from uniform and activations bend."""
    state = model.state_dict()
    for name in sorted(state):
        shape = tuple(state[name].shape)
        value = random.standard_normal(shape)
        if "LayerNorm" in name and name.endswith("weight"):
            value = 1 + 0.3 * value
        elif len(shape) == 1:
            value = 0.3 * value
        elif "embeddings" not in name:
            value = 1.5 * value / numpy.sqrt(shape[1])
        state[name].copy_(torch.from_numpy(value.astype(numpy.float32)))


def make_batch(golden: Golden, pad: int, random: numpy.random.Generator) -> dict[str, torch.Tensor]:
    """A batch of rows of different lengths under the names of `transformers`."""
    ids = random.integers(3, VOCAB_SIZE, (ROWS, TOKENS))
    mask = numpy.ones_like(ids)
    if golden.padding != "none":
        for row, length in enumerate(random.integers(3, TOKENS, ROWS - 1)):  # the last row stays full
            padding = slice(length, None) if golden.padding == "right" else slice(0, TOKENS - length)
            ids[row, padding] = pad
            mask[row, padding] = 0
    batch = {"input_ids": torch.from_numpy(ids)}
    if golden.padding != "none":
        batch["attention_mask"] = torch.from_numpy(mask)
    if golden.token_types > 1 and golden.padding != "none":
        batch["token_type_ids"] = torch.from_numpy(random.integers(0, golden.token_types, (ROWS, TOKENS)))
    if golden.labels == 1:
        batch["labels"] = torch.from_numpy(random.standard_normal(ROWS).astype(numpy.float32))
    elif golden.labels > 1:
        batch["labels"] = torch.from_numpy(random.integers(0, golden.labels, ROWS))
    return batch


def stored_state(golden: Golden, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors as the folder holds them."""
    state = {name: tensor.to(golden.stored_type).contiguous() for name, tensor in model.state_dict().items()}
    if golden.names == "old":
        renamed = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, old in renamed.items():
            state = {name.replace(new, old): tensor for name, tensor in state.items()}
        state["bert.embeddings.position_ids"] = torch.arange(POSITIONS).unsqueeze(0)
    return state


def write_golden(golden: Golden, folder: Path) -> None:
    """Writes config.json, model.safetensors and golden.safetensors."""
    random = numpy.random.default_rng(sum(golden.name.encode()))
    pad = 0 if golden.family == "bert" else 1
    config = AutoConfig.for_model(
        golden.family, vocab_size=VOCAB_SIZE, hidden_size=golden.width, num_hidden_layers=golden.layers,
        num_attention_heads=golden.heads, intermediate_size=golden.feed_forward, hidden_act=golden.activation,
        max_position_embeddings=POSITIONS, type_vocab_size=golden.token_types, layer_norm_eps=golden.epsilon,
        pad_token_id=pad, num_labels=max(golden.labels, 1), attn_implementation="eager")
    if golden.labels:
        model = AutoModelForSequenceClassification.from_config(config)
    else:
        model = AutoModel.from_config(config, add_pooling_layer=False)
    model.eval()
    with torch.no_grad():
        draw_weights(model, random)
        model.to(golden.stored_type).to(torch.float32)  # what a loader of the stored numbers sees
        batch = make_batch(golden, pad, random)
        output = model(**batch, output_hidden_states=True)
    tensors = dict(batch)
    for index, hidden in enumerate(output.hidden_states):
        tensors[f"hidden.{index}"] = hidden.contiguous()
    if golden.labels:
        tensors["logits"] = output.logits.contiguous()
        tensors["loss"] = output.loss.reshape(1)

    folder.mkdir(parents=True, exist_ok=True)
    text = json.loads(config.to_json_string())
    text.pop("transformers_version", None)
    (folder / "config.json").write_text(json.dumps(text, indent=2, sort_keys=True) + "\n", encoding="ascii")
    save_file(stored_state(golden, model), folder / "model.safetensors", metadata={"format": "pt"})
    save_file(tensors, folder / "golden.safetensors")


def differences(stored: Path, fresh: Path) -> list[str]:
    """What differs between two golden folders, as sentences."""
    found = []
    if (stored / "config.json").read_text(encoding="ascii") != (fresh / "config.json").read_text(encoding="ascii"):
        found.append(f"{stored / 'config.json'}: not what would be written now")
    for name in ("model.safetensors", "golden.safetensors"):
        old, new = load_file(stored / name), load_file(fresh / name)
        if old.keys() != new.keys():
            found.append(f"{stored / name}: other tensors: {sorted(old.keys() ^ new.keys())}")
            continue
        for key in sorted(old):
            if old[key].shape != new[key].shape or old[key].dtype != new[key].dtype:
                found.append(f"{stored / name}: {key}: another shape or type")
                continue
            error = (old[key].double() - new[key].double()).abs().max().item()
            scale = new[key].double().abs().max().item()
            if error > TOLERANCE * scale:
                found.append(f"{stored / name}: {key}: off by {error / scale:.1e} of its largest value")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "tests" / "golden", help="folder of the golden folders")
    parser.add_argument("--check", action="store_true", help="compare with the stored files instead of writing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.check:
        for golden in GOLDENS:
            write_golden(golden, arguments.output / golden.name)
        return 0
    problems = []
    with tempfile.TemporaryDirectory() as temporary:
        for golden in GOLDENS:
            stored = arguments.output / golden.name
            if not (stored / "golden.safetensors").is_file():
                print(f"{stored}: expected a golden folder; found none; run tools/make_golden.py", file=sys.stderr)
                return 2
            write_golden(golden, Path(temporary) / golden.name)
            problems += differences(stored, Path(temporary) / golden.name)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
