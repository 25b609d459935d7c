#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/rosa_1: ROSA (Gamal Abdel Hameed et al., 2024, arXiv 2407.07802) on query, key, value and output of the RoBERTa of
tests/golden/roberta_1, written from the paper's equations (row vectors, W [in, out]) with plain PyTorch in double. Written are the
factorisation for given directions, and, with factors moved as training would, logits, loss and the factors' gradients.
tests/unit/peft/rosa_golden_test compares them.

    tools/make_golden_rosa.py            writes the file
    tools/make_golden_rosa.py --check    writes nothing; fails when the stored file is not what would be written
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import load_file
from transformers import RobertaForSequenceClassification

from golden_file import GOLDEN, write_or_check

DIRECTIONS = [1, 4, 5, 10]


class SplitLinear(torch.nn.Module):
    """y = x W_f + (x A) B + bias, with A [in, r], B [r, out]"""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().T  # [in, out]
        u, sigma, vt = torch.linalg.svd(weight, full_matrices=False)
        chosen = u[:, DIRECTIONS]
        sign = torch.sign(chosen[chosen.abs().argmax(0), torch.arange(len(DIRECTIONS))])
        self.A = torch.nn.Parameter(chosen * sign * sigma[DIRECTIONS])
        self.B = torch.nn.Parameter(vt[DIRECTIONS] * sign[:, None])
        self.register_buffer("rest", weight - self.A.detach() @ self.B.detach())
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.rest + (x @ self.A) @ self.B + self.bias


def adapted(model) -> dict[str, SplitLinear]:
    """Replaces the linears; by canonical name."""
    linears = {}
    for number, layer in enumerate(model.roberta.encoder.layer):
        attention = layer.attention
        for holder, attribute, role in ((attention.self, "query", "query"), (attention.self, "key", "key"),
                                        (attention.self, "value", "value"), (attention.output, "dense", "output")):
            split = SplitLinear(getattr(holder, attribute))
            setattr(holder, attribute, split)
            linears[f"encoder.{number}.attention.{role}"] = split
    return linears


def make() -> dict[str, torch.Tensor]:
    model = RobertaForSequenceClassification.from_pretrained(GOLDEN / "roberta_1").double().eval()
    batch = load_file(GOLDEN / "roberta_1" / "golden.safetensors")
    linears = adapted(model)
    written = {"directions": torch.tensor(DIRECTIONS)}
    generator = torch.Generator().manual_seed(0)
    for name, split in linears.items():
        for part, tensor in (("rosa_a", split.A.T), ("rosa_b", split.B.T), ("weight", split.rest.T)):
            written[f"split.{name}.{part}"] = tensor.clone()
        for factor in (split.A, split.B):
            moved = factor.detach() + 0.2 * torch.randn(factor.shape, generator=generator, dtype=torch.float64)
            factor.data = moved.float().double()  # exactly what the file will hold
        split.rest = split.rest.float().double()
        for part, tensor in (("rosa_a", split.A.T), ("rosa_b", split.B.T), ("weight", split.rest.T)):
            written[f"value.{name}.{part}"] = tensor.clone()
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    loss = torch.nn.functional.cross_entropy(logits, batch["labels"])
    factors = {f"{name}.{part}": getattr(split, part[-1].upper()) for name, split in linears.items() for part in ("rosa_a", "rosa_b")}
    for name, gradient in zip(factors, torch.autograd.grad(loss, list(factors.values()))):
        written[f"gradient.{name}"] = gradient.T
    written["logits"], written["loss"] = logits, loss.reshape(1)
    return {name: tensor.detach().contiguous() if tensor.dtype == torch.int64 else tensor.detach().float().contiguous()
            for name, tensor in written.items()}


if __name__ == "__main__":
    sys.exit(write_or_check("rosa_1", make))
