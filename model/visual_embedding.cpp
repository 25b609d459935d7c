// SPDX-License-Identifier: Apache-2.0
#include "model/visual_embedding.h"

#include <ATen/ATen.h>

#include <cmath>

#include "model/initial.h"

namespace espalier::model {

namespace {

constexpr std::int64_t kBoxNumbers = 5;  // four corners and the area

at::Tensor given_or(const NamedTensors& tensors, const std::string& name, const at::Tensor& otherwise) {
  const auto found = tensors.find(name);
  return found == tensors.end() ? otherwise : found->second;
}

}  // namespace

VisualEmbedding::VisualEmbedding(const VisualEmbeddingSpec& spec)
    : spec_(spec),
      features_(spec.feature_width, spec.width, /*bias_wanted=*/true),
      boxes_(kBoxNumbers, spec.width, /*bias_wanted=*/true),
      features_norm_{NormKind::kRmsNorm, spec.norm_epsilon, spec.width, {}, {}},
      boxes_norm_(features_norm_) {}

at::Tensor VisualEmbedding::forward(const NamedTensors& tensors, const at::Tensor& tokens,
                                    const ForwardContext& context) const {
  const auto features = tensors.at("vis_feats").to(at::kFloat);
  const auto boxes = boxes_with_area(tensors, features);
  const auto embedded = features_norm_.forward(features_.forward(features, context)) +
                        boxes_norm_.forward(boxes_.forward(boxes, context));  // [B, V, D]
  return spec_.has_order ? embedded + embed_order(tensors, tokens, features.size(1)) : embedded;
}

at::Tensor VisualEmbedding::boxes_with_area(const NamedTensors& tensors, const at::Tensor& features) {
  const auto boxes =
      given_or(tensors, "vis_boxes", at::zeros({features.size(0), features.size(1), 4}, features.options()))
          .to(at::kFloat);
  const auto width = boxes.select(-1, 1) - boxes.select(-1, 0);
  const auto height = boxes.select(-1, 3) - boxes.select(-1, 2);
  return at::cat({boxes, (width * height).unsqueeze(-1)}, -1);
}

at::Tensor VisualEmbedding::embed_order(const NamedTensors& tensors, const at::Tensor& tokens,
                                        std::int64_t num_visual) const {
  const auto ids = at::TensorOptions().dtype(at::kLong).device(tokens.device());
  const auto images = given_or(tensors, "img_order_ids", at::zeros({1, num_visual}, ids));
  const auto objects = given_or(tensors, "obj_order_ids", at::arange(num_visual, ids).unsqueeze(0));
  return at::embedding(image_order_, images) + at::embedding(tokens, tokens.size(0) - 1 - objects).to(at::kFloat);
}

void VisualEmbedding::visit_weights(const WeightVisitor& visit) {
  model::visit_weights("visual.features", features_, visit);
  model::visit_weights("visual.features_norm", features_norm_, visit);
  model::visit_weights("visual.boxes", boxes_, visit);
  model::visit_weights("visual.boxes_norm", boxes_norm_, visit);
  if (spec_.has_order) visit("visual.image_order.weight", image_order_, {spec_.num_images, spec_.width});
}

at::Tensor initial_visual_weight(const VisualEmbeddingSpec& spec, std::string_view role,
                                 const std::vector<std::int64_t>& shape, std::uint64_t seed, const std::string& name) {
  if (role.ends_with("norm.weight")) return at::ones(shape, at::kFloat);
  if (role == "visual.image_order.weight") return normal_by_name(shape, 1, seed, name);
  const auto inputs = role.starts_with("visual.features.") ? spec.feature_width : kBoxNumbers;
  return uniform_by_name(shape, 1 / std::sqrt(static_cast<double>(inputs)), seed, name);
}

}  // namespace espalier::model
