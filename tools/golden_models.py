# SPDX-License-Identifier: Apache-2.0
"""The models of tools/make_golden.py: a table of tiny ones of every family, their configs, and how folders of other versions and programs
differ from what `transformers` writes now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

VOCAB_SIZE = 60
POSITIONS = 24


@dataclass(frozen=True)
class Golden:
    """One model and one padded batch."""

    name: str
    model_class: str  # of transformers or of make_golden_visual
    config: dict
    padding: str = "right"  # left | right | none (then there is no mask either)
    labels: int = 0  # pooled heads: number of classes, 1: regression
    has_token_types: bool = False
    stored_type: torch.dtype = torch.float32
    edit_config: Callable[[dict], None] = lambda config: None  # as other versions wrote it
    edit_state: Callable[[dict], dict] = lambda state: state  # as other programs named it
    is_head_untied: bool = False
    num_images: int = 0  # of a row
    has_boxes: bool = False

    @property
    def makes_texts(self) -> bool:
        """Right-padded prompts of causal models have their ends in the middle: those are not gone on from."""
        is_causal = "CausalLM" in self.model_class or "LMHead" in self.model_class
        return "ConditionalGeneration" in self.model_class or (is_causal and self.padding != "right")

    @property
    def family(self) -> str:
        return self.name.rsplit("_", 1)[0]

    @property
    def is_encoder_decoder(self) -> bool:
        return self.family in ("t5", "clip_t5", "bart")

    @property
    def has_gradients(self) -> bool:
        return self.name.endswith("_1")


def bert(layers: int, width: int, heads: int, feed_forward: int, activation: str, epsilon: float, types: int = 2) -> dict:
    return dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=feed_forward,
                hidden_act=activation, layer_norm_eps=epsilon, type_vocab_size=types, max_position_embeddings=POSITIONS)


def t5(width: int, heads: int, head_width: int, feed_forward: int, layers: int, decoder_layers: int, kind: str, **more) -> dict:
    return dict(d_model=width, num_heads=heads, d_kv=head_width, d_ff=feed_forward, num_layers=layers,
                num_decoder_layers=decoder_layers, feed_forward_proj=kind, relative_attention_num_buckets=8,
                relative_attention_max_distance=9, decoder_start_token_id=0, **more)


def clip_t5(*sizes, **more) -> dict:
    return t5(*sizes, **{"feat_dim": 14, "pos_dim": 4, "n_images": 2, "use_vis_order_embedding": True, "use_vis_layer_norm": True,
                         "individual_vis_layer_norm": True, **more})


def bart(width: int, encoder: tuple[int, int, int], decoder: tuple[int, int, int], **more) -> dict:
    return dict(d_model=width, encoder_layers=encoder[0], encoder_attention_heads=encoder[1], encoder_ffn_dim=encoder[2],
                decoder_layers=decoder[0], decoder_attention_heads=decoder[1], decoder_ffn_dim=decoder[2],
                max_position_embeddings=POSITIONS, **more)


def opt(width: int, heads: int, feed_forward: int, layers: int, **more) -> dict:
    return dict(hidden_size=width, num_attention_heads=heads, ffn_dim=feed_forward, num_hidden_layers=layers,
                max_position_embeddings=POSITIONS, **more)


def gpt2(width: int, heads: int, layers: int, **more) -> dict:
    return dict(n_embd=width, n_head=heads, n_layer=layers, n_positions=POSITIONS, bos_token_id=0, eos_token_id=0, **more)


def llama(width: int, heads: int, shared_heads: int, feed_forward: int, layers: int, **more) -> dict:
    return dict(hidden_size=width, num_attention_heads=heads, num_key_value_heads=shared_heads, intermediate_size=feed_forward,
                num_hidden_layers=layers, max_position_embeddings=POSITIONS, **more)


def vit(width: int, heads: int, feed_forward: int, layers: int, image: int, patch: int, **more) -> dict:
    return dict(hidden_size=width, num_attention_heads=heads, intermediate_size=feed_forward, num_hidden_layers=layers,
                image_size=image, patch_size=patch, **more)


def with_old_names(state: dict) -> dict:
    """gamma and beta, and a position_ids buffer, as in the first folders."""
    for new, old in {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    return state | {"bert.embeddings.position_ids": torch.arange(POSITIONS).unsqueeze(0)}


def without_prefix(prefix: str) -> Callable[[dict], dict]:
    """A bare backbone, as original hub files are named."""
    return lambda state: {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def with_old_rope(config: dict) -> None:
    """rope_theta and rope_scaling, as transformers 4 wrote them."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    config["torch_dtype"] = config.pop("dtype", "float32")


def with_buffers(state: dict) -> dict:
    """The causal masks that older GPT-2 folders store, and no prefix."""
    state = without_prefix("transformer.")(state)
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("h."))
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, POSITIONS, POSITIONS).tril() for i in range(layers)}
    return state | masks | {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(layers)}


def with_copies(state: dict) -> dict:
    """The copies of the tied table that the original T5 files hold."""
    copies = {f"{stack}.embed_tokens.weight": state["shared.weight"].clone() for stack in ("encoder", "decoder")}
    return state | copies


def as_version_1_1(config: dict) -> None:
    """T5 1.1 as it is published: the tie flag alone says that the head is its own and unscaled."""
    config["tie_word_embeddings"] = False
    config.pop("scale_decoder_outputs", None)


LLAMA3_ROPE = dict(rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=16)
GOLDENS = [
    Golden("bert_1", "BertForSequenceClassification", bert(3, 24, 3, 40, "gelu", 1e-12), labels=2, has_token_types=True),
    Golden("bert_2", "BertForSequenceClassification", bert(2, 32, 4, 56, "relu", 1e-6), "left", 5, has_token_types=True),
    Golden("bert_3", "BertForSequenceClassification", bert(5, 16, 2, 64, "gelu_new", 1e-3), "none", 1, edit_state=with_old_names),
    Golden("bert_4", "BertModel", bert(3, 20, 5, 24, "silu", 1e-12, 3), has_token_types=True, stored_type=torch.bfloat16),
    Golden("roberta_1", "RobertaForSequenceClassification", bert(3, 24, 2, 48, "gelu", 1e-5, 1), labels=2),
    Golden("roberta_2", "RobertaForSequenceClassification", bert(4, 18, 3, 30, "relu", 1e-5, 1), "left", 5),
    Golden("roberta_3", "RobertaForSequenceClassification", bert(1, 32, 4, 32, "gelu_new", 1e-5), "none", 1),
    Golden("roberta_4", "XLMRobertaModel", bert(3, 16, 1, 20, "silu", 1e-4, 1), "left"),
    Golden("t5_1", "T5ForConditionalGeneration", t5(24, 3, 10, 40, 3, 2, "relu"), edit_state=with_copies),
    Golden("t5_2", "T5ForConditionalGeneration", t5(20, 5, 4, 36, 2, 3, "gated-gelu", tie_word_embeddings=False), "none",
           edit_config=as_version_1_1, is_head_untied=True),
    Golden("t5_3", "T5ForConditionalGeneration", t5(16, 2, 8, 24, 1, 1, "gated-silu", layer_norm_epsilon=1e-3),
           stored_type=torch.bfloat16),
    Golden("t5_4", "T5ForSequenceClassification", t5(16, 2, 6, 24, 2, 1, "gated-gelu"), "none", labels=3),
    Golden("clip_t5_1", "VisualT5ForConditionalGeneration", clip_t5(24, 3, 10, 40, 3, 2, "relu"), edit_state=with_copies,
           num_images=2, has_boxes=True),
    Golden("clip_t5_2", "VisualT5ForConditionalGeneration", clip_t5(20, 5, 4, 36, 2, 3, "gated-gelu", tie_word_embeddings=False),
           "none", edit_config=as_version_1_1, is_head_untied=True, num_images=1),
    Golden("clip_t5_3", "VisualT5ForConditionalGeneration", clip_t5(16, 2, 8, 24, 1, 1, "gated-silu", use_vis_order_embedding=False),
           "left", stored_type=torch.bfloat16, num_images=1, has_boxes=True),
    Golden("bart_1", "BartForConditionalGeneration", bart(24, (3, 3, 40), (2, 4, 32), scale_embedding=True)),
    Golden("bart_2", "BartForConditionalGeneration", bart(20, (1, 5, 24), (3, 2, 28), activation_function="relu"), "left"),
    Golden("bart_3", "BartForSequenceClassification", bart(16, (2, 2, 24), (1, 2, 40), activation_function="silu"), "none", 3),
    Golden("opt_1", "OPTForCausalLM", opt(24, 3, 40, 3), "left"),
    Golden("opt_2", "OPTForCausalLM", opt(20, 2, 36, 2, do_layer_norm_before=False, word_embed_proj_dim=12), "right"),
    Golden("opt_3", "OPTForCausalLM", opt(16, 1, 24, 5, activation_function="gelu"), "none", stored_type=torch.float16),
    Golden("gpt2_1", "GPT2LMHeadModel", gpt2(24, 3, 3), "left"),
    Golden("gpt2_2", "GPT2LMHeadModel", gpt2(20, 2, 2, n_inner=36, activation_function="relu", scale_attn_by_inverse_layer_idx=True,
                                             reorder_and_upcast_attn=True), edit_state=with_buffers),
    Golden("gpt2_3", "GPT2ForSequenceClassification", gpt2(16, 4, 1, scale_attn_weights=False, pad_token_id=1), labels=3),
    Golden("llama_1", "LlamaForCausalLM", llama(24, 6, 2, 40, 3), "left"),
    Golden("llama_2", "LlamaForCausalLM", llama(20, 2, 1, 36, 2, head_dim=12, attention_bias=True, mlp_bias=True,
                                                tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE), edit_config=with_old_rope),
    Golden("llama_3", "LlamaForCausalLM", llama(16, 2, 2, 24, 5, hidden_act="gelu", rope_parameters=dict(
        rope_type="linear", rope_theta=100.0, factor=2.0)), "none", stored_type=torch.bfloat16),
    Golden("llama_4", "MistralForSequenceClassification", llama(16, 4, 2, 24, 1, sliding_window=None, pad_token_id=1), labels=2),
    Golden("vit_1", "ViTForImageClassification", vit(24, 3, 40, 3, 12, 4), labels=5),
    Golden("vit_2", "ViTForImageClassification", vit(20, 2, 24, 2, 10, 5, hidden_act="relu", qkv_bias=False, num_channels=1), labels=2),
    Golden("vit_3", "ViTModel", vit(16, 4, 32, 5, 11, 3, layer_norm_eps=1e-3), stored_type=torch.float16),
]

# Where `transformers` keeps the stacks of each family: blocks by name of their place in the chain, and the norms that end them.
STACKS = {
    "bert": {"encoder": "encoder.layer"},
    "roberta": {"encoder": "encoder.layer"},
    "t5": {"encoder": "encoder.block", "encoder_final": "encoder.final_layer_norm", "decoder": "decoder.block",
           "decoder_final": "decoder.final_layer_norm"},
    "clip_t5": {"encoder": "encoder.block", "encoder_final": "encoder.final_layer_norm", "decoder": "decoder.block",
                "decoder_final": "decoder.final_layer_norm"},
    "bart": {"encoder": "encoder.layers", "decoder": "decoder.layers"},
    "opt": {"decoder": "decoder.layers", "decoder_final": ("decoder.project_out", "decoder.final_layer_norm")},
    "gpt2": {"decoder": "h", "decoder_final": "ln_f"},
    "llama": {"decoder": "layers", "decoder_final": "norm"},
    "vit": {"encoder": "layers", "encoder_final": "layernorm"},
}
