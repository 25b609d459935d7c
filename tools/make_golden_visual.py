# SPDX-License-Identifier: Apache-2.0
"""CLIP-T5 for tools/make_golden.py: `transformers` has none, so this is its T5 with an encoder that reads visual tokens behind the
text, written from the published formula (Cho et al., VL-T5, ICML 2021; Sung et al., VL-Adapter, CVPR 2022)."""

from __future__ import annotations

import torch
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.t5.modeling_t5 import T5LayerNorm, T5Stack

VISUAL_INPUTS = ("vis_feats", "vis_boxes", "img_order_ids", "obj_order_ids")


class VisualEmbedding(torch.nn.Module):
    """RMS(W_f feature + b_f) + RMS(W_p [x1, x2, y1, y2, area] + b_p) + image order + the word from the table's end."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        width, epsilon = config.d_model, config.layer_norm_epsilon
        self.feat_embedding = torch.nn.Sequential(torch.nn.Linear(config.feat_dim, width), T5LayerNorm(width, eps=epsilon))
        self.absolute_vis_pos_embedding = torch.nn.Sequential(torch.nn.Linear(5, width), T5LayerNorm(width, eps=epsilon))
        self.has_order = config.use_vis_order_embedding
        if self.has_order:
            self.img_order_embedding = torch.nn.Embedding(config.n_images, width)

    def forward(self, words: torch.nn.Embedding, feats: torch.Tensor, boxes: torch.Tensor | None, images: torch.Tensor | None,
                objects: torch.Tensor | None) -> torch.Tensor:
        rows, tokens, _ = feats.shape
        if boxes is None:
            boxes = torch.zeros(rows, tokens, 4)
        x1, x2, y1, y2 = boxes.unbind(-1)
        embedded = self.feat_embedding(feats) + self.absolute_vis_pos_embedding(
            torch.stack([x1, x2, y1, y2, (x2 - x1) * (y2 - y1)], -1))
        if not self.has_order:
            return embedded
        images = torch.zeros(rows, tokens, dtype=torch.long) if images is None else images
        objects = torch.arange(tokens).expand(rows, -1) if objects is None else objects
        return embedded + self.img_order_embedding(images) + words(words.num_embeddings - 1 - objects)


class VisualEncoder(T5Stack):
    """Reads [text; visual tokens]; distances bias the scores between words only."""

    def __init__(self, config: T5Config) -> None:
        super().__init__(config)
        self.visual_embedding = VisualEmbedding(config)

    def forward(self, input_ids=None, attention_mask=None, vis_feats=None, vis_boxes=None, img_order_ids=None, obj_order_ids=None,
                **_options):
        visual = self.visual_embedding(self.embed_tokens, vis_feats, vis_boxes, img_order_ids, obj_order_ids)
        hidden = torch.cat([self.embed_tokens(input_ids), visual], 1)
        num_words, num_tokens = input_ids.shape[1], hidden.shape[1]
        is_padding = torch.zeros(hidden.shape[:2], dtype=torch.bool)
        if attention_mask is not None:
            is_padding[:, :num_words] = attention_mask == 0
        mask = torch.zeros(is_padding.shape).masked_fill(is_padding, torch.finfo(torch.float32).min)[:, None, None, :]
        words_bias = self.block[0].layer[0].SelfAttention.compute_bias(num_words, num_words)
        bias = torch.nn.functional.pad(words_bias, (0, num_tokens - num_words, 0, num_tokens - num_words))
        for block in self.block:
            hidden = block(hidden, mask, bias, None, None, None)[0]
        return BaseModelOutput(last_hidden_state=self.final_layer_norm(hidden))


class VisualT5ForConditionalGeneration(T5ForConditionalGeneration):
    """T5 whose decoder reads words and visual tokens."""

    def __init__(self, config: T5Config) -> None:
        super().__init__(config)
        self.encoder = VisualEncoder(self.encoder.config)
        self.encoder.set_input_embeddings(self.shared)

    def forward(self, input_ids=None, attention_mask=None, vis_feats=None, vis_boxes=None, img_order_ids=None, obj_order_ids=None,
                encoder_outputs=None, **more):
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask, vis_feats, vis_boxes, img_order_ids, obj_order_ids)
        if attention_mask is not None:
            num_visual = encoder_outputs[0].shape[1] - attention_mask.shape[1]
            attention_mask = torch.nn.functional.pad(attention_mask, (0, num_visual), value=1)
        return super().forward(attention_mask=attention_mask, encoder_outputs=encoder_outputs, **more)
