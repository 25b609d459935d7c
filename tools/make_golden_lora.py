#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/lora_1: LoRA on the BERT of tests/golden/bert_1 as `peft` has it, trained for five steps of torch.optim.AdamW on
fixed batches, in double, without dropout. Written are the batches, the values that training starts from, logits, loss and gradients of
the first step, and every trained value after the last. tests/unit/peft/baselines_golden_test compares them.

    tools/make_golden_lora.py            writes the file
    tools/make_golden_lora.py --check    writes nothing; fails when the stored file is not what would be written
"""

from __future__ import annotations

import sys

import peft
import torch
from safetensors.torch import load_file
from transformers import BertForSequenceClassification

from golden_file import GOLDEN, write_or_check

STEPS, LEARNING_RATE, WEIGHT_DECAY = 5, 1e-3, 0.01
CASES = {
    "plain": {"r": 4, "lora_alpha": 4, "target_modules": ["query", "value"]},
    "scaled": {"r": 3, "lora_alpha": 16, "target_modules": ["query", "value"]},
    "everywhere": {"r": 2, "lora_alpha": 6, "use_rslora": True,
                   "target_modules": ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]},
}
ROLES = {"attention.self.query": "attention.query", "attention.self.key": "attention.key", "attention.self.value": "attention.value",
         "attention.output.dense": "attention.output", "intermediate.dense": "feed_forward.up", "output.dense": "feed_forward.down"}


def canonical(name: str) -> str:
    """base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.default.weight -> encoder.0.attention.query.lora_a"""
    if "modules_to_save" in name:
        role = "classifier" if ".classifier." in name else "dense"
        return f"head.{role}.{name.rsplit('.', 1)[1]}"
    number, place = name.partition(".layer.")[2].split(".", 1)
    linear, _, factor = place.partition(".lora_")
    return f"encoder.{number}.{ROLES[linear]}.lora_{factor[0].lower()}"


def make_batches() -> list[dict[str, torch.Tensor]]:
    first = load_file(GOLDEN / "bert_1" / "golden.safetensors")
    batches = [{name: first[name] for name in ("input_ids", "attention_mask", "token_type_ids", "labels")}]
    generator = torch.Generator().manual_seed(1)
    rows, tokens = first["input_ids"].shape
    while len(batches) < STEPS:
        lengths = torch.randint(3, tokens + 1, (rows, 1), generator=generator)
        mask = (torch.arange(tokens) < lengths).long()
        batches.append({"input_ids": torch.randint(3, 60, (rows, tokens), generator=generator) * mask, "attention_mask": mask,
                        "token_type_ids": torch.randint(0, 2, (rows, tokens), generator=generator),
                        "labels": torch.randint(0, 2, (rows,), generator=generator)})
    return batches


def train(options: dict[str, object], batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    # A seed that puts no gradient so near zero that AdamW, which divides by its size, makes a direction of its rounding.
    torch.manual_seed(3)
    model = BertForSequenceClassification.from_pretrained(GOLDEN / "bert_1")
    # init_lora_weights=False leaves both factors random: from B = 0 the first step would give A no gradient.
    config = peft.LoraConfig(task_type="SEQ_CLS", lora_dropout=0.0, init_lora_weights=False, modules_to_save=["pooler"], **options)
    model = peft.get_peft_model(model, config).double().eval()
    return take_steps(model, {canonical(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}, batches)


def take_steps(model: torch.nn.Module, trained: dict[str, torch.nn.Parameter], batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """One step of AdamW a batch, matrices decaying: `trained` before and after, and what the first step computes."""
    written = {f"start.{name}": parameter.detach().clone() for name, parameter in trained.items()}
    groups = [{"params": [p for p in trained.values() if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
              {"params": [p for p in trained.values() if p.dim() == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
    for step, batch in enumerate(batches):
        output = model(**batch)
        optimizer.zero_grad()
        output.loss.backward()
        if step == 0:
            written |= {"logits": output.logits, "loss": output.loss.reshape(1)}
            written |= {f"gradient.{name}": parameter.grad.clone() for name, parameter in trained.items()}
        optimizer.step()
    return written | {f"end.{name}": parameter for name, parameter in trained.items()}


def make() -> dict[str, torch.Tensor]:
    batches = make_batches()
    written = {f"batch.{step}.{name}": tensor for step, batch in enumerate(batches) for name, tensor in batch.items()}
    for name, options in CASES.items():
        written |= {f"{name}.{key}": tensor.detach().float() for key, tensor in train(options, batches).items()}
    return {name: tensor.contiguous() for name, tensor in written.items()}


if __name__ == "__main__":
    sys.exit(write_or_check("lora_1", make))
