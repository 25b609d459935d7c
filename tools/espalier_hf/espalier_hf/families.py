# SPDX-License-Identifier: Apache-2.0
"""Where `transformers` keeps what Espalier names by role: tables, one for each kind of model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from espalier_hf.adapter import AdapterError


@dataclass(frozen=True)
class Spot:
    """A module below a block (or model); of GPT-2's joint projection one of three parts."""

    path: str
    part: int = 0
    num_parts: int = 1


@dataclass(frozen=True)
class Stack:
    name: str  # canonical: "encoder" or "decoder"
    blocks: str  # path of the list
    roles: dict[str, Spot]
    final_norm: str | None = None
    is_causal: bool = False
    attention: str | None = None  # path of the self-attention, where a block keeps residual and norm outside it
    norm_follows: bool = False  # each part of a block ends in its norm, instead of beginning with it
    projection: str | None = None  # behind the final norm, before the head


@dataclass(frozen=True)
class Family:
    stacks: tuple[Stack, ...]
    others: dict[str, str]  # canonical layer and role -> path of a module or of a bare parameter, from the base model
    head: dict[str, str]  # role -> path, from the whole model; of a language model "output"
    side_sizes: tuple[str, ...]  # numbers of the config that a side network divides


def _spots(**paths: str) -> dict[str, Spot]:
    return {role.replace("__", "."): Spot(path) for role, path in paths.items()}


_BERT = _spots(attention__query="attention.self.query", attention__key="attention.self.key", attention__value="attention.self.value",
               attention__output="attention.output.dense", attention__norm="attention.output.LayerNorm",
               feed_forward__up="intermediate.dense", feed_forward__down="output.dense", feed_forward__norm="output.LayerNorm")
_VIT = _spots(attention__query="attention.q_proj", attention__key="attention.k_proj", attention__value="attention.v_proj",
              attention__output="attention.o_proj", attention__norm="layernorm_before", feed_forward__up="mlp.fc1",
              feed_forward__down="mlp.fc2", feed_forward__norm="layernorm_after")
_GPT2 = _spots(attention__output="attn.c_proj", attention__norm="ln_1", feed_forward__up="mlp.c_fc", feed_forward__down="mlp.c_proj",
               feed_forward__norm="ln_2", attention__query_key_value="attn.c_attn")
_GPT2 |= {f"attention.{role}": Spot("attn.c_attn", part, 3) for part, role in enumerate(("query", "key", "value"))}
_LLAMA = _spots(attention__query="self_attn.q_proj", attention__key="self_attn.k_proj", attention__value="self_attn.v_proj",
                attention__output="self_attn.o_proj", attention__norm="input_layernorm", feed_forward__gate="mlp.gate_proj",
                feed_forward__up="mlp.up_proj", feed_forward__down="mlp.down_proj", feed_forward__norm="post_attention_layernorm")
_OPT = _spots(attention__query="self_attn.q_proj", attention__key="self_attn.k_proj", attention__value="self_attn.v_proj",
              attention__output="self_attn.out_proj", attention__norm="self_attn_layer_norm", feed_forward__up="fc1",
              feed_forward__down="fc2", feed_forward__norm="final_layer_norm")
_BART = _OPT | _spots(cross_attention__query="encoder_attn.q_proj", cross_attention__key="encoder_attn.k_proj",
                      cross_attention__value="encoder_attn.v_proj", cross_attention__output="encoder_attn.out_proj",
                      cross_attention__norm="encoder_attn_layer_norm")


def _t5(feed_forward: int, is_gated: bool) -> dict[str, Spot]:
    spots = _spots(attention__query="layer.0.SelfAttention.q", attention__key="layer.0.SelfAttention.k",
                   attention__value="layer.0.SelfAttention.v", attention__output="layer.0.SelfAttention.o",
                   attention__relative_bias="layer.0.SelfAttention.relative_attention_bias", attention__norm="layer.0.layer_norm",
                   cross_attention__query="layer.1.EncDecAttention.q", cross_attention__key="layer.1.EncDecAttention.k",
                   cross_attention__value="layer.1.EncDecAttention.v", cross_attention__output="layer.1.EncDecAttention.o",
                   cross_attention__norm="layer.1.layer_norm")
    dense = f"layer.{feed_forward}.DenseReluDense."
    spots |= {"feed_forward.norm": Spot(f"layer.{feed_forward}.layer_norm"), "feed_forward.gate": Spot(dense + "wi_0"),
              "feed_forward.up": Spot(dense + ("wi_1" if is_gated else "wi")), "feed_forward.down": Spot(dense + "wo")}
    return spots


_BERT_EMBEDDING = {"embedding.token": "embeddings.word_embeddings", "embedding.position": "embeddings.position_embeddings",
                   "embedding.token_type": "embeddings.token_type_embeddings", "embedding.norm": "embeddings.LayerNorm"}
_BERT_SIZES = ("hidden_size", "intermediate_size")


def _bert(head: dict[str, str]) -> Family:
    return Family((Stack("encoder", "encoder.layer", _BERT),), _BERT_EMBEDDING, head, _BERT_SIZES)


def family_of(model: nn.Module) -> Family:
    config = model.config
    kind = config.model_type
    if kind == "bert":
        return _bert({"dense": "bert.pooler.dense", "classifier": "classifier"})
    if kind in ("roberta", "xlm-roberta"):
        return _bert({"dense": "classifier.dense", "classifier": "classifier.out_proj"})
    if kind == "vit":
        return Family((Stack("encoder", "layers", _VIT, "layernorm", attention="attention"),),
                      {"embedding.class_token": "embeddings.cls_token", "embedding.position": "embeddings.position_embeddings",
                       "embedding.projection": "embeddings.patch_embeddings.projection", "encoder_final.norm": "layernorm"},
                      {"classifier": "classifier"}, _BERT_SIZES)
    if kind == "gpt2":
        return Family((Stack("decoder", "h", _GPT2, "ln_f", True, "attn"),),
                      {"embedding.token": "wte", "embedding.position": "wpe", "decoder_final.norm": "ln_f"}, {"classifier": "score", "output": "lm_head"},
                      ("n_embd", "n_inner"))
    if kind in ("llama", "mistral"):
        return Family((Stack("decoder", "layers", _LLAMA, "norm", True, "self_attn"),),
                      {"embedding.token": "embed_tokens", "decoder_final.norm": "norm"}, {"classifier": "score", "output": "lm_head"},
                      ("hidden_size", "intermediate_size", "head_dim"))
    if kind == "opt":
        final = "decoder.final_layer_norm" if config.do_layer_norm_before else None
        projection = "decoder.project_out" if config.word_embed_proj_dim != config.hidden_size else None
        return Family((Stack("decoder", "decoder.layers", _OPT, final, True, "self_attn", not config.do_layer_norm_before, projection),),
                      {"embedding.token": "decoder.embed_tokens", "embedding.position": "decoder.embed_positions",
                       "embedding.projection": "decoder.project_in", "decoder_final.norm": "decoder.final_layer_norm",
                       "decoder_final.projection": "decoder.project_out"}, {"classifier": "score", "output": "lm_head"},
                      ("hidden_size", "ffn_dim"))
    sequence_head = {"dense": "classification_head.dense", "classifier": "classification_head.out_proj", "output": "lm_head"}
    if kind == "bart":
        return Family((Stack("encoder", "encoder.layers", _BART), Stack("decoder", "decoder.layers", _BART, is_causal=True)),
                      {"embedding.token": "shared", "embedding.position": "encoder.embed_positions",
                       "embedding.norm": "encoder.layernorm_embedding", "decoder_embedding.position": "decoder.embed_positions",
                       "decoder_embedding.norm": "decoder.layernorm_embedding"},
                      sequence_head, ("d_model", "encoder_ffn_dim", "decoder_ffn_dim"))
    if kind == "t5":
        return Family((Stack("encoder", "encoder.block", _t5(1, config.is_gated_act), "encoder.final_layer_norm"),
                       Stack("decoder", "decoder.block", _t5(2, config.is_gated_act), "decoder.final_layer_norm", True)),
                      {"embedding.token": "shared", "encoder_final.norm": "encoder.final_layer_norm",
                       "decoder_final.norm": "decoder.final_layer_norm"},
                      sequence_head, ("d_model", "d_kv", "d_ff"))
    raise AdapterError(f"expected a model of a family that Espalier trains, found {kind}")


def put(root: nn.Module, spot: Spot, kind: str, value: torch.Tensor) -> None:
    """Copies a weight or bias into its place; a linear's weight is [out, in]."""
    try:
        module = root.get_submodule(spot.path)
    except AttributeError as error:
        raise AdapterError(f"expected a model with {spot.path}, found none; is this the class of model with the head of the training?") from error
    target = getattr(module, kind, None)
    if target is None:
        raise AdapterError(f"expected {spot.path} to have a {kind}, found none")
    with torch.no_grad():
        if isinstance(module, Conv1D) and kind == "weight":
            target = target.t()
        rows = target.shape[0] // spot.num_parts
        part = target[spot.part * rows:(spot.part + 1) * rows]
        if part.shape != value.shape:
            raise AdapterError(f"{spot.path}.{kind}: expected shape {tuple(part.shape)}, found {tuple(value.shape)}; is this the backbone "
                               "that the adapter was trained on, with as many labels?")
        part.copy_(value)


def put_plain(model: nn.Module, family: Family, name: str, value: torch.Tensor) -> None:
    """Copies a trained weight of the model itself: "encoder.3.attention.query.bias", "head.classifier.weight"."""
    place, kind = name.rsplit(".", 1)
    layer, _, role = place.partition(".")
    if layer == "head" and role in family.head:
        return put(model, Spot(family.head[role]), kind, value)
    if place in family.others:
        path = family.others[place]
        parent, _, own_name = path.rpartition(".")
        if isinstance(getattr(model.base_model.get_submodule(parent), own_name, None), nn.Parameter):
            path, kind = parent, own_name
        return put(model.base_model, Spot(path), kind, value)
    for stack in family.stacks:
        number, _, role_of_block = role.partition(".")
        blocks = blocks_of(model, stack)
        if layer == stack.name and role_of_block in stack.roles and int(number) < len(blocks):
            return put(blocks[int(number)], stack.roles[role_of_block], kind, value)
    raise AdapterError(f"tensor {name}: expected a weight of the model, found a name that stands for none")


def blocks_of(model: nn.Module, stack: Stack) -> nn.ModuleList:
    return model.base_model.get_submodule(stack.blocks)
