# SPDX-License-Identifier: Apache-2.0
"""LST (docs/methods/lst.md). The side blocks are blocks of the model's own class, made from its config with divided widths."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional

from espalier_hf.adapter import Adapter
from espalier_hf.calls import Call, on_input, on_output, state_of, turn_cache_off
from espalier_hf.families import Family, Stack, blocks_of, put


class LadderSideNetwork:
    def __init__(self, model: nn.Module, family: Family, adapter: Adapter) -> None:
        self.adapter, self.family = adapter, family
        self.reduction = adapter.integer("reduction")
        self.side: torch.Tensor | None = None
        self.memory: torch.Tensor | None = None
        self.position_bias: torch.Tensor | None = None
        self.merge_gate = adapter.tensors.get("lst.merge_gate")
        turn_cache_off(model)
        for stack in family.stacks:
            self.attach_stack(model, stack, is_last=stack is family.stacks[-1])

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        tensors = self.adapter.tensors
        bias = tensors.get(f"{name}.bias")
        return functional.linear(x.float(), tensors[f"{name}.weight"].to(x.device), None if bias is None else bias.to(x.device))

    def attach_stack(self, model: nn.Module, stack: Stack, is_last: bool) -> None:
        blocks = blocks_of(model, stack)
        side_config = self.side_config(blocks[0], model.config, stack)
        first = "lst.decoder_first" if stack.name == "decoder" and len(self.family.stacks) > 1 else "lst.first"

        def begin(call: Call) -> None:
            self.position_bias = None
            self.side = self.linear(first, call["hidden_states"])

        on_input(blocks[0], begin)
        owns_table = True  # the first kept block holds the table of relative positions
        for number, block in enumerate(blocks):
            name = f"lst.{stack.name}.{number}"
            if not self.adapter.has(f"{name}.block."):
                continue
            side_block = self.make_block(block, side_config, number, owns_table)
            owns_table = False
            self.fill(side_block, f"{name}.block.", stack)
            on_output(block, lambda call, output, name=name, side_block=side_block: self.climb(call, output, name, side_block))
        final = None
        if stack.final_norm is not None:
            norm = model.base_model.get_submodule(stack.final_norm)
            width = norm.weight.shape[0] // self.reduction
            epsilon = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
            final = type(norm)(width, eps=epsilon).to(norm.weight.device)
            for kind in ("weight", "bias"):
                value = self.adapter.tensors.get(f"lst.{stack.name}_final.norm.{kind}")
                if value is not None:
                    getattr(final, kind).data.copy_(value)

        def finish(_: Call, output: object) -> torch.Tensor | None:
            side = self.side if final is None else final(self.side)
            if not is_last:
                self.memory = side
                return None
            read = self.linear("lst.up", side)
            state = state_of(output)
            if self.merge_gate is not None:
                gate = self.sigmoid(self.merge_gate)
                read = gate * read + (1 - gate) * state
            return read.to(state.dtype)

        last = stack.projection or stack.final_norm
        on_output(blocks[-1] if last is None else model.base_model.get_submodule(last), finish)

    def side_config(self, block: nn.Module, config: object, stack: Stack) -> object:
        side = copy.deepcopy(config)
        if config.model_type == "gpt2" and side.n_inner is None:
            side.n_inner = 4 * side.n_embd
        for size in self.family.side_sizes:
            if getattr(side, size) is not None:  # a head width may be left to follow from the width
                setattr(side, size, getattr(side, size) // self.reduction)
        if config.model_type == "t5":
            side.is_decoder = stack.name == "decoder"
        return side

    def make_block(self, block: nn.Module, config: object, number: int, owns_table: bool) -> nn.Module:
        kind = type(block)
        device = next(block.parameters()).device
        if config.model_type == "t5":
            has_table = owns_table and self.adapter.options["position_bias"] == "own"
            made = kind(config, has_relative_attention_bias=has_table, layer_idx=number)
        elif config.model_type == "vit":
            made = kind(config)
        else:
            made = kind(config, layer_idx=number)
        return made.to(device=device, dtype=torch.float32).eval().requires_grad_(False)

    def fill(self, block: nn.Module, prefix: str, stack: Stack) -> None:
        for name, value in self.adapter.tensors.items():
            if name.startswith(prefix):
                role, kind = name.removeprefix(prefix).rsplit(".", 1)
                put(block, stack.roles[role], kind, value)

    def sigmoid(self, gate: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(gate.to(self.side.device) / self.adapter.number("gate_temperature"))

    def join(self, name: str, state: torch.Tensor) -> None:
        if f"{name}.down.weight" not in self.adapter.tensors:
            return
        ladder = self.linear(f"{name}.down", state)
        gate = self.adapter.tensors.get(f"{name}.gate")
        if gate is None:
            self.side = self.side + ladder
        else:
            gate = self.sigmoid(gate)
            self.side = gate * self.side + (1 - gate) * ladder

    def climb(self, call: Call, output: object, name: str, side_block: nn.Module) -> None:
        is_before = self.adapter.options["fuse"] == "before"
        if is_before:
            self.join(name, state_of(output))
        call = call | {"hidden_states": self.side, "past_key_values": None}
        if "position_bias" in call:
            call["position_bias"] = output[1] if self.adapter.options["position_bias"] == "backbone" else self.position_bias
        if "encoder_decoder_position_bias" in call:
            call["encoder_decoder_position_bias"] = None
        if "position_embeddings" in call:  # a narrower head turns with every r-th frequency
            call["position_embeddings"] = tuple(angles[..., ::self.reduction] for angles in call["position_embeddings"])
        if self.memory is not None and call.get("encoder_hidden_states") is not None:
            call["encoder_hidden_states"] = self.memory
        if type(side_block).__name__ == "ViTLayer":
            call.pop("past_key_values")
        result = side_block(**call)
        self.side = state_of(result)
        if isinstance(result, tuple):
            self.position_bias = result[1]
        if not is_before:
            self.join(name, state_of(output))
