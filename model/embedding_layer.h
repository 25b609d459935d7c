// SPDX-License-Identifier: Apache-2.0
// First link of a stack: token, type and position embeddings, prompts before and visual tokens behind the words, norm,
// dropout. Sets "hidden" [B, T, D]. That of a decoder reads decoder_input_ids, and what the encoder left in "hidden"
// becomes "memory".
// B rows, N prompts, T words (in "hidden" prompts and V visual tokens too), D width, P positions, K token types
#pragma once

#include <optional>

#include "model/slice.h"
#include "model/visual_embedding.h"

namespace espalier::model {

/// Roles: token.weight, projection.weight, position.weight, token_type.weight, norm.{weight,bias}, and those of a
/// VisualEmbedding. Of inputs that are text_only() it embeds the text.
class EmbeddingLayer : public Layer {
 public:
  explicit EmbeddingLayer(LayerPlan plan);
  void forward(Carry& carry, const StageInputs& inputs, const ForwardContext& context) const override;
  void visit_weights(const WeightVisitor& visit) override;
  void visit_linears(const std::function<void(const std::string& role, Linear& linear)>& visit) override;
  /// The visual tokens alone, before dropout [B, V, D], for a side network that sees them where its backbone does not.
  /// Requires: plan().embedding->visual, inputs as prepare() made them.
  [[nodiscard]] at::Tensor embed_visual(const StageInputs& inputs, const ForwardContext& context) const;

 private:
  /// ids [B, T], prompts [N, D] or undefined -> [B, N + T, D]
  [[nodiscard]] at::Tensor embed_tokens(const at::Tensor& ids, const at::Tensor& prompts,
                                        const ForwardContext& context) const;
  /// [N + T, D] or [B, N + T, D]
  [[nodiscard]] at::Tensor embed_positions(const at::Tensor& ids, std::int64_t num_prompts, const NamedTensors& tensors,
                                           const ForwardContext& context) const;

  EmbeddingSpec spec_;
  at::Tensor token_;  // [vocabulary, D], or the width of the tokens
  Linear projection_;
  at::Tensor position_;    // [P, D]
  at::Tensor token_type_;  // [K, D]
  Norm norm_;
  std::optional<VisualEmbedding> visual_;
};

}  // namespace espalier::model
