// SPDX-License-Identifier: Apache-2.0
// Pre-extracted features of images as tokens behind the text: the part of CLIP-T5 that every method trains.
// B batch, V visual tokens of a row (all its images, one after the other), F feature width, D width, I images
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/backbone.h"
#include "model/carry.h"

namespace espalier::model {

/// Roles: visual.features.{weight [D, F], bias}, visual.boxes.{weight [D, 5], bias},
/// visual.{features,boxes}_norm.weight and visual.image_order.weight [I, D].
class VisualEmbedding {
 public:
  explicit VisualEmbedding(const VisualEmbeddingSpec& spec);
  /// vis_feats [B, V, F], and where they are given vis_boxes [B, V, 4] (x1, x2, y1, y2; else 0), img_order_ids [B, V]
  /// (else 0) and obj_order_ids [B, V] (else 0..V-1) -> [B, V, D]. `tokens` [vocabulary, D] is the table of the words,
  /// whose last rows stand for the order of objects.
  [[nodiscard]] at::Tensor forward(const NamedTensors& tensors, const at::Tensor& tokens,
                                   const ForwardContext& context) const;
  void visit_weights(const WeightVisitor& visit);

 private:
  /// [B, V, 5], the area behind the corners.
  [[nodiscard]] static at::Tensor boxes_with_area(const NamedTensors& tensors, const at::Tensor& features);
  [[nodiscard]] at::Tensor embed_order(const NamedTensors& tensors, const at::Tensor& tokens,
                                       std::int64_t num_visual) const;

  VisualEmbeddingSpec spec_;
  Linear features_, boxes_;
  Norm features_norm_, boxes_norm_;
  at::Tensor image_order_;  // [I, D]
};

/// Where a visual embedding starts that no folder has, as the published code: linears, biases included, from
/// U(-1/sqrt(in), 1/sqrt(in)), norms 1, image orders N(0, 1), drawn by `name`.
at::Tensor initial_visual_weight(const VisualEmbeddingSpec& spec, std::string_view role,
                                 const std::vector<std::int64_t>& shape, std::uint64_t seed, const std::string& name);

}  // namespace espalier::model
