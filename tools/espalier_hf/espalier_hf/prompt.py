# SPDX-License-Identifier: Apache-2.0
"""Prompt tuning (docs/methods/prompt.md): what reads the words reads trained vectors before them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from espalier_hf.adapter import Adapter
from espalier_hf.calls import Call, arguments_of, turn_cache_off

NAME = "embedding.prompts"


def attach_prompts(model: nn.Module, adapter: Adapter) -> set[str]:
    prompts = adapter.tensors[NAME]
    if model.config.is_encoder_decoder:
        encoder = model.get_encoder()
        take_over(encoder, lambda call: read_prompts(encoder, prompts, call))
        take_over(model.get_decoder(), lambda call: lengthen(call, "encoder_attention_mask", len(prompts), 1))
        return {NAME}
    turn_cache_off(model)
    reader = model.base_model.decoder if model.config.model_type == "opt" else model.base_model
    # Heads of causal models find a row's last word by its ids, and count its words; a mean takes prompts too.
    is_dropped = model.config.model_type not in ("bert", "roberta", "xlm-roberta") and adapter.pooling != "mean"
    take_over(reader, lambda call: read_prompts(reader, prompts, call), (lambda output: drop_prompts(output, len(prompts))) if is_dropped else None)
    return {NAME}


def read_prompts(reader: nn.Module, prompts: torch.Tensor, call: Call) -> None:
    words = reader.get_input_embeddings()(call.pop("input_ids"))
    call["inputs_embeds"] = torch.cat([prompts.to(words).expand(len(words), -1, -1), words], 1)
    lengthen(call, "attention_mask", len(prompts), 1)
    lengthen(call, "token_type_ids", len(prompts), 0)
    positions = call.get("position_ids")
    if positions is not None:
        first = torch.arange(len(prompts)).to(positions).expand(len(positions), -1)
        call["position_ids"] = torch.cat([first, positions + len(prompts)], 1)


def lengthen(call: Call, name: str, count: int, value: int) -> None:
    if call.get(name) is not None:
        call[name] = nn.functional.pad(call[name], (count, 0), value=value)


def drop_prompts(output: object, count: int) -> object:
    if isinstance(output, tuple):
        return (output[0][:, count:], *output[1:])
    output.last_hidden_state = output.last_hidden_state[:, count:]
    return output


def take_over(module: nn.Module, before: Callable[[Call], None], after: Callable[[object], object] | None = None) -> None:
    """`before` changes the arguments of every call by name, `after` what it gives."""
    plain = module.forward

    def forward(*args: object, **kwargs: object) -> object:
        call = arguments_of(_Signature(plain), args, kwargs)
        before(call)
        output = plain(**call)
        return output if after is None else after(output)

    module.forward = forward


class _Signature(nn.Module):
    """Stands for a module whose forward is taken over, where its arguments are named."""

    def __init__(self, forward: Callable) -> None:
        super().__init__()
        self.forward = forward
