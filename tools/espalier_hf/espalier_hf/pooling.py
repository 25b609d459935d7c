# SPDX-License-Identifier: Apache-2.0
"""model.pooling = mean: one classifier reads the mean of the tokens. `transformers` has no head for it, so the state of every token
becomes the mean, wherever the model's own head looks, and a head's dense layer is passed by."""

from __future__ import annotations

import torch
from torch import nn

from espalier_hf.adapter import AdapterError
from espalier_hf.calls import Call, on_output
from espalier_hf.families import Family

HEADS_WITH_DENSE = ("classifier", "classification_head")  # of RoBERTa; of T5 and BART


def pool_by_mean(model: nn.Module, family: Family) -> None:
    if "classifier" not in family.head or not hasattr(model, family.head["classifier"].split(".")[0]):
        raise AdapterError("expected a model with a head that pools, since the adapter has model.pooling = mean, found none")
    on_output(model.base_model, lambda call, output: with_mean(call, output, model.config.model_type == "vit"))
    for name in HEADS_WITH_DENSE:
        head = getattr(model, name, None)
        if head is not None and hasattr(head, "out_proj"):
            head.forward = lambda state, out_proj=head.out_proj, **_: out_proj(state[:, 0] if state.dim() == 3 else state)


def with_mean(call: Call, output: object, is_image: bool) -> object:
    state = output.last_hidden_state  # [B, T, D]
    mean = mean_of(state[:, 1:] if is_image else state, call.get("attention_mask"))  # of patches, without the class token
    output.last_hidden_state = mean.unsqueeze(1).expand_as(state)
    if getattr(output, "pooler_output", None) is not None:  # BERT's head reads it
        output.pooler_output = mean
    return output


def mean_of(state: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Of the attended tokens, in fp32; a row without any gives zeros."""
    wide = state.float()
    if mask is None:
        return wide.mean(1).to(state)
    mask = nn.functional.pad(mask, (state.shape[1] - mask.shape[1], 0), value=1)  # prompts stand in front
    attended = mask.to(wide).unsqueeze(-1)
    return ((wide * attended).sum(1) / attended.sum(1).clamp(min=1)).to(state)
