#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/prompt_1: prompt tuning (Lester et al., EMNLP 2021, arXiv 2104.08691) as `peft` does it, on the models of
tests/golden/<family>_1: prompts, logits of the words' places, loss and the prompts' gradient. tests/unit/peft/prompt_test compares them.

    tools/make_golden_prompt.py            writes the file
    tools/make_golden_prompt.py --check    writes nothing; fails when the stored file is not what would be written
"""

from __future__ import annotations

import sys

import torch
from peft import PromptTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from golden_file import GOLDEN, write_or_check

NUM_PROMPTS = 5
KINDS = {
    "bert": TaskType.SEQ_CLS,
    "roberta": TaskType.SEQ_CLS,
    "t5": TaskType.SEQ_2_SEQ_LM,
    "bart": TaskType.SEQ_2_SEQ_LM,
    "gpt2": TaskType.CAUSAL_LM,
    "opt": TaskType.CAUSAL_LM,
    "llama": TaskType.CAUSAL_LM,
}
CLASSES = {
    TaskType.SEQ_CLS: AutoModelForSequenceClassification,
    TaskType.SEQ_2_SEQ_LM: AutoModelForSeq2SeqLM,
    TaskType.CAUSAL_LM: AutoModelForCausalLM,
}


def make_family(family: str, kind: TaskType) -> dict[str, torch.Tensor]:
    base = CLASSES[kind].from_pretrained(GOLDEN / f"{family}_1", dtype=torch.float64)
    model = get_peft_model(base, PromptTuningConfig(task_type=kind, num_virtual_tokens=NUM_PROMPTS)).eval()
    embedding = model.prompt_encoder["default"].embedding
    # Of an encoder-decoder peft keeps twice as many, and reads the first half.
    prompts = torch.randn(embedding.weight.shape).float()
    embedding.weight = torch.nn.Parameter(prompts.double())
    stored = load_file(GOLDEN / f"{family}_1" / "golden.safetensors")
    batch = {name: stored[name] for name in ("input_ids", "attention_mask", "token_type_ids", "labels") if name in stored}
    if kind == TaskType.CAUSAL_LM:
        # peft has the last prompt predict the first word, which is no target in Espalier: none here.
        batch["labels"] = batch["labels"].clone()
        batch["labels"][:, 0] = -100
    output = model(**batch)
    gradient, = torch.autograd.grad(output.loss, [embedding.weight])
    logits = output.logits[:, NUM_PROMPTS:] if kind == TaskType.CAUSAL_LM else output.logits
    made = {"prompts": prompts[:NUM_PROMPTS], "logits": logits, "loss": output.loss.reshape(1), "gradient": gradient[:NUM_PROMPTS]}
    return {f"{family}.{name}": tensor.detach().float().contiguous().clone() for name, tensor in made.items()}


def make() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    written: dict[str, torch.Tensor] = {}
    for family, kind in KINDS.items():
        written |= make_family(family, kind)
    return written


if __name__ == "__main__":
    sys.exit(write_or_check("prompt_1", make))
