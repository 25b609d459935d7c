#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/meft_1: MEFT1, 2 and 3 (Liao et al., NeurIPS 2023, arXiv 2306.00477) on the BERT of tests/golden/bert_1, written
from the paper's equations with plain PyTorch and the modules of `transformers`, all activations kept. tests/unit/peft/meft_golden_test
compares logits, loss and the gradients of adapters and classifier.

    tools/make_golden_meft.py            writes the file
    tools/make_golden_meft.py --check    writes nothing; fails when the stored file is not what would be written
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import load_file
from transformers import BertForSequenceClassification

from golden_file import GOLDEN, write_or_check

RANK = 4
SCALES = {1: (0.1, 1.0), 2: (1.0, 0.1), 3: (0.1, 0.1)}  # lambda, beta
ADAPTERS = {1: ("ffn_adapter", "rev_adapter"), 2: ("ffn_adapter", "rev_adapter"), 3: ("attn_adapter", "ffn_adapter")}


class Adapter(torch.nn.Module):
    """Up(gelu(Down(x)))"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = torch.nn.Linear(width, RANK)
        self.up = torch.nn.Linear(RANK, width)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(torch.nn.functional.gelu(self.down(x)))


def attention_part(layer, adapter, x, mask):
    output = layer.attention.output.dense(layer.attention.self(x, attention_mask=mask)[0])
    if adapter is not None:
        output = output + adapter(output)
    return layer.attention.output.LayerNorm(output + x)


def feed_forward_part(layer, adapter, a):
    return layer.output.LayerNorm(layer.output.dense(layer.intermediate(a)) + adapter(a) + a)


def logits_of(model, adapters, variant, batch):
    scale, other_scale = SCALES[variant]
    mask = (1.0 - batch["attention_mask"].to(torch.float64)[:, None, None, :]) * torch.finfo(torch.float32).min
    x1 = x2 = model.bert.embeddings(input_ids=batch["input_ids"], token_type_ids=batch["token_type_ids"])
    for number, layer in enumerate(model.bert.encoder.layer):
        own = {name: adapters[f"encoder_{number}_{name}"] for name in ADAPTERS[variant]}
        if variant == 3:
            y1 = scale * x1 + attention_part(layer, own["attn_adapter"], x2, mask)
            y2 = other_scale * x2 + feed_forward_part(layer, own["ffn_adapter"], y1)
            x1, x2 = y1, y2
            continue

        def whole(x, layer=layer, own=own):
            return feed_forward_part(layer, own["ffn_adapter"], attention_part(layer, None, x, mask))

        first, second = (whole, own["rev_adapter"]) if variant == 1 else (own["rev_adapter"], whole)
        y1 = scale * x1 + first(x2)
        y2 = other_scale * x2 + second(y1)
        x1, x2 = y2, y1
    return model.classifier(model.bert.pooler((x1 + x2) / 2))


def make() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(GOLDEN / "bert_1").double().eval()
    batch = load_file(GOLDEN / "bert_1" / "golden.safetensors")
    written = {}
    for variant in SCALES:
        adapters = torch.nn.ModuleDict({
            f"encoder_{number}_{name}": Adapter(model.config.hidden_size)
            for number in range(model.config.num_hidden_layers) for name in ADAPTERS[variant]
        }).float()
        values = {name: value.detach().clone() for name, value in adapters.state_dict().items()}
        adapters = adapters.double()
        logits = logits_of(model, adapters, variant, batch)
        loss = torch.nn.functional.cross_entropy(logits, batch["labels"])
        trained = dict(adapters.named_parameters()) | {"head.classifier." + name: p for name, p in model.classifier.named_parameters()}
        gradients = dict(zip(trained, torch.autograd.grad(loss, list(trained.values()))))
        written[f"{variant}.logits"], written[f"{variant}.loss"] = logits, loss.reshape(1)
        for kind, tensors in (("value", values), ("gradient", gradients)):
            for name, tensor in tensors.items():
                number_name = name.removeprefix("encoder_").split("_", 1)
                canonical = name if name.startswith("head.") else f"encoder.{number_name[0]}.{number_name[1]}"
                written[f"{variant}.{kind}.{canonical}"] = tensor
    return {name: tensor.detach().float().contiguous() for name, tensor in written.items()}


if __name__ == "__main__":
    sys.exit(write_or_check("meft_1", make))
