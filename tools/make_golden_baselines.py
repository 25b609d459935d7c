#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/baselines_1: BitFit and bottleneck adapters on the BERT of tests/golden/bert_1, a few lines of PyTorch around
`transformers`, and LoRA on the GPT-2 of tests/golden/gpt2_1 as `peft` has it; each trained for five steps of torch.optim.AdamW on fixed
batches, in double, without dropout. Written is what tools/make_golden_lora.py writes. tests/unit/peft/baselines_golden_test compares it.

    tools/make_golden_baselines.py            writes the file
    tools/make_golden_baselines.py --check    writes nothing; fails when the stored file is not what would be written
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import peft
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import BertForSequenceClassification, GPT2LMHeadModel

import make_golden_lora
from golden_file import GOLDEN, write_or_check
from make_golden_lora import STEPS, take_steps

RANK, PARALLEL_SCALE, FACTOR_RANK, ALPHA = 4, 4.0, 3, 6
# Of the random starts: no gradient is so near zero that AdamW, which divides by its size, makes a direction of its rounding.
SEED = 1
PLACES = {"bert.embeddings.LayerNorm": "embedding.norm", "bert.pooler.dense": "head.dense", "classifier": "head.classifier"}
ROLES = make_golden_lora.ROLES | {"attention.output.LayerNorm": "attention.norm", "output.LayerNorm": "feed_forward.norm"}
GPT2_ROLES = {"attn.c_proj": "attention.output", "mlp.c_fc": "feed_forward.up", "mlp.c_proj": "feed_forward.down"}
JOINT_ROLES = ("attention.query", "attention.key", "attention.value")  # the parts of c_attn
Trained = dict[str, torch.nn.Parameter]


def canonical(name: str) -> str:
    """bert.encoder.layer.0.attention.self.query.bias -> encoder.0.attention.query.bias"""
    place, kind = name.rsplit(".", 1)
    if place in PLACES:
        return f"{PLACES[place]}.{kind}"
    number, role = place.removeprefix("bert.encoder.layer.").split(".", 1)
    return f"encoder.{number}.{ROLES[role]}.{kind}"


def load_bert(is_wanted: Callable[[str], bool]) -> tuple[torch.nn.Module, Trained]:
    """The model, and by canonical name what of it trains: its head and what is wanted."""
    model = BertForSequenceClassification.from_pretrained(GOLDEN / "bert_1").double().eval().requires_grad_(False)
    trained = {}
    for name, parameter in model.named_parameters():
        if name.startswith(("bert.pooler.", "classifier.")) or is_wanted(name):
            trained[canonical(name)] = parameter.requires_grad_()
    return model, trained


def make_bottleneck(width: int, name: str, trained: Trained) -> dict[str, torch.nn.Parameter]:
    made = {}
    for role, shape in {"down.weight": (RANK, width), "down.bias": (RANK,), "up.weight": (width, RANK), "up.bias": (width,)}.items():
        made[role] = trained[f"{name}.{role}"] = torch.nn.Parameter(0.3 * torch.randn(shape, dtype=torch.float64))
    return made


def apply(bottleneck: dict[str, torch.nn.Parameter], activation: Callable, x: torch.Tensor) -> torch.Tensor:
    narrow = activation(functional.linear(x, bottleneck["down.weight"], bottleneck["down.bias"]))
    return functional.linear(narrow, bottleneck["up.weight"], bottleneck["up.bias"])


def make_bitfit() -> tuple[torch.nn.Module, Trained]:
    return load_bert(lambda name: name.endswith(".bias"))


def make_houlsby() -> tuple[torch.nn.Module, Trained]:
    """Behind both parts of a block; the norms of the blocks train."""
    model, trained = load_bert(lambda name: ".layer." in name and ".LayerNorm." in name)
    for number, block in enumerate(model.bert.encoder.layer):
        for place, linear in (("after_attention", block.attention.output.dense), ("after_feed_forward", block.output.dense)):
            bottleneck = make_bottleneck(linear.out_features, f"encoder.{number}.adapter.{place}", trained)
            linear.register_forward_hook(lambda _m, _i, y, own=bottleneck: y + apply(own, functional.gelu, y))
    return model, trained


def make_parallel() -> tuple[torch.nn.Module, Trained]:
    """Beside the feed-forward."""
    model, trained = load_bert(lambda name: False)
    for number, block in enumerate(model.bert.encoder.layer):
        block.feed_forward_chunk = with_parallel(block, make_bottleneck(model.config.hidden_size, f"encoder.{number}.adapter.parallel", trained))
    return model, trained


def with_parallel(block: torch.nn.Module, bottleneck: dict[str, torch.nn.Parameter]) -> Callable[[torch.Tensor], torch.Tensor]:
    def feed_forward(x: torch.Tensor) -> torch.Tensor:
        y = block.output.dense(block.intermediate(x)) + PARALLEL_SCALE * apply(bottleneck, functional.relu, x)
        return block.output.LayerNorm(x + y)

    return feed_forward


class JointFactors:
    """PEFT has one pair of factors on c_attn. With rank 3 r, of which each of the three parts reads its own r directions, they are the
    three pairs of rank r that the parts have: B is block-diagonal, and its gradient is kept so."""

    def __init__(self, linear: torch.nn.Module) -> None:
        self.a, self.b = linear.lora_A["default"].weight, linear.lora_B["default"].weight  # [3 R, in], [3 out, 3 R]
        parts = len(JOINT_ROLES)
        blocks = torch.block_diag(*[torch.ones(self.b.shape[0] // parts, FACTOR_RANK)] * parts)
        self.b.data.mul_(blocks)
        self.b.register_hook(lambda gradient: gradient * blocks.to(gradient))

    @staticmethod
    def parts_of(a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {}
        for part, (role, own_a, rows) in enumerate(zip(JOINT_ROLES, a.chunk(3), b.chunk(3), strict=True)):
            found |= {f"{role}.lora_a": own_a, f"{role}.lora_b": rows[:, part * FACTOR_RANK:(part + 1) * FACTOR_RANK]}
        return found


def make_gpt2_lora() -> tuple[torch.nn.Module, Trained]:
    """Of c_attn the names are "decoder.0.joint.lora_a"."""
    model = GPT2LMHeadModel.from_pretrained(GOLDEN / "gpt2_1")
    joint = {r".*\.c_attn": 3}
    config = peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, init_lora_weights=False, fan_in_fan_out=True, r=FACTOR_RANK, lora_alpha=ALPHA,
                             target_modules=["c_attn", *GPT2_ROLES], rank_pattern={name: k * FACTOR_RANK for name, k in joint.items()},
                             alpha_pattern={name: k * ALPHA for name, k in joint.items()})
    model = peft.get_peft_model(model, config).double().eval()
    trained = {}
    for number, block in enumerate(model.base_model.model.transformer.h):
        joint_factors = JointFactors(block.attn.c_attn)
        trained |= {f"decoder.{number}.joint.lora_a": joint_factors.a, f"decoder.{number}.joint.lora_b": joint_factors.b}
        for path, role in GPT2_ROLES.items():
            linear = block.get_submodule(path)
            trained |= {f"decoder.{number}.{role}.lora_a": linear.lora_A["default"].weight,
                        f"decoder.{number}.{role}.lora_b": linear.lora_B["default"].weight}
    assert len(trained) == sum(parameter.requires_grad for parameter in model.parameters())
    return model, trained


def split_joint(written: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in written.items():
        begin, joint, end = name.partition("joint.")
        if not joint:
            found[name] = tensor
        elif end == "lora_a":
            parts = JointFactors.parts_of(tensor, written[f"{begin}joint.lora_b"])
            found |= {begin + part: value for part, value in parts.items()}
    return found


def make_text_batches() -> list[dict[str, torch.Tensor]]:
    """The golden batch of the model, then more of its kind: padded on the left, no target at padding nor at a row's first token."""
    first = load_file(GOLDEN / "gpt2_1" / "golden.safetensors")
    batches = [{name: first[name] for name in ("input_ids", "attention_mask", "labels")}]
    generator = torch.Generator().manual_seed(1)
    rows, tokens = first["input_ids"].shape
    while len(batches) < STEPS:
        starts = torch.randint(0, tokens - 2, (rows, 1), generator=generator)
        mask = (torch.arange(tokens) >= starts).long()
        ids = torch.randint(3, 60, (rows, tokens), generator=generator) * mask
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(torch.arange(tokens) <= starts, -100)})
    return batches


CASES = {"bitfit": ("bert", make_bitfit), "houlsby": ("bert", make_houlsby), "parallel": ("bert", make_parallel), "gpt2_lora": ("gpt2", make_gpt2_lora)}


def make() -> dict[str, torch.Tensor]:
    batches = {"bert": make_golden_lora.make_batches(), "gpt2": make_text_batches()}
    written = {f"{family}.batch.{step}.{name}": tensor for family, of_family in batches.items()
               for step, batch in enumerate(of_family) for name, tensor in batch.items()}
    for name, (family, make_model) in CASES.items():
        torch.manual_seed(SEED)
        numbers = take_steps(*make_model(), batches[family])
        written |= {f"{name}.{key}": tensor.detach().float() for key, tensor in split_joint(numbers).items()}
    return {name: tensor.contiguous() for name, tensor in written.items()}


if __name__ == "__main__":
    sys.exit(write_or_check("baselines_1", make))
