// SPDX-License-Identifier: Apache-2.0
// B batch, T tokens
#include "model/slice.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <set>

#include "common/check.h"
#include "common/counting_allocator.h"
#include "common/error.h"
#include "model/block_layer.h"
#include "model/embedding_layer.h"
#include "model/head_layer.h"
#include "model/weight_loader.h"

namespace espalier::model {

namespace {

/// Ids outside [0, num_rows) would read past a table, on a GPU without a word.
void check_ids(const NamedTensors& tensors, const std::string& name, std::int64_t num_rows, std::string_view key) {
  const auto found = tensors.find(name);
  if (found == tensors.end() || found->second.numel() == 0) return;
  const auto lowest = found->second.min().item<std::int64_t>();
  const auto highest = found->second.max().item<std::int64_t>();
  if (lowest >= 0 && highest < num_rows) return;
  throw ConfigError(
      fmt::format("{}: expected ids from 0 to {} ({} of the model); found {}; was the data prepared for another model?",
                  name, num_rows - 1, key, lowest < 0 ? lowest : highest));
}

void check_inputs(const Backbone& backbone, const NamedTensors& tensors) {
  const auto ids = tensors.find("input_ids");
  if (ids == tensors.end() || ids->second.dim() != 2) {
    throw ConfigError("input_ids: expected an array [rows, tokens]; found none of that shape");
  }
  for (const auto* name : {"attention_mask", "token_type_ids"}) {
    const auto found = tensors.find(name);
    if (found != tensors.end() && found->second.sizes() != ids->second.sizes()) {
      throw ConfigError(fmt::format("{}: expected the shape of input_ids, [{}]; found [{}]", name,
                                    fmt::join(ids->second.sizes().vec(), ", "),
                                    fmt::join(found->second.sizes().vec(), ", ")));
    }
  }
  if (ids->second.size(1) > backbone.max_positions) {
    throw ConfigError(
        fmt::format("input_ids: expected at most {} tokens a row (positions of the model); found {}; shorten the rows",
                    backbone.max_positions, ids->second.size(1)));
  }
  check_ids(tensors, "input_ids", backbone.vocab_size, "vocab_size");
  const auto& embedding = backbone.chain.front().embedding;
  if (embedding && embedding->num_token_types > 0) {
    check_ids(tensors, "token_type_ids", embedding->num_token_types, "type_vocab_size");
  }
}

/// [B, T] of 1 (attend) and 0 -> [B, 1, 1, T] of 0 and the lowest finite number; undefined when everything is attended.
at::Tensor attention_bias_of(const at::Tensor& mask, const SliceOptions& options) {
  const auto is_padding = mask.eq(0);
  if (!is_padding.any().item<bool>()) return {};
  const auto zeros = at::zeros(mask.sizes(), at::TensorOptions().dtype(at::kFloat));
  const double lowest = options.compute_type == at::kHalf ? -65504.0
                        : options.compute_type == at::kBFloat16
                            ? static_cast<double>(std::numeric_limits<c10::BFloat16>::lowest())
                            : static_cast<double>(std::numeric_limits<float>::lowest());
  return zeros.masked_fill(is_padding, lowest).unsqueeze(1).unsqueeze(1).to(options.device, options.compute_type);
}

}  // namespace

std::unique_ptr<Layer> make_layer(const LayerPlan& plan) {
  switch (plan.kind) {
    case LayerKind::kEmbedding:
      return std::make_unique<EmbeddingLayer>(plan);
    case LayerKind::kBlock:
      return std::make_unique<BlockLayer>(plan);
    case LayerKind::kHead:
      return std::make_unique<HeadLayer>(plan);
  }
  throw InternalError("make_layer: unknown kind of layer");
}

void visit_planned_weights(const Backbone& backbone,
                           const std::function<void(const LayerPlan& layer, const std::string& role,
                                                    const std::vector<std::int64_t>& shape)>& visit) {
  for (const auto& plan : backbone.chain) {
    make_layer(plan)->visit_weights([&](const std::string& role, const at::Tensor& /*slot*/,
                                        const std::vector<std::int64_t>& shape) { visit(plan, role, shape); });
  }
}

std::vector<LayerRange> plan_stages(const Backbone& backbone, int num_stages,
                                    const std::vector<std::int64_t>& first_blocks) {
  const int num_blocks = backbone.num_blocks();
  if (num_stages < 1 || num_stages > num_blocks) {
    throw ConfigError(
        fmt::format("stages: expected 1 to {} (a stage holds at least one of the model's blocks); found {}", num_blocks,
                    num_stages));
  }
  std::vector<std::int64_t> cuts = first_blocks;
  if (cuts.empty()) {
    // Rounded up: where the blocks do not divide, the earlier stages hold one more, since the last one has the head and
    // its loss.
    for (int stage = 1; stage < num_stages; ++stage) cuts.push_back((stage * num_blocks + num_stages - 1) / num_stages);
  }
  const bool is_ascending = std::adjacent_find(cuts.begin(), cuts.end(), std::greater_equal<>()) == cuts.end();
  if (static_cast<int>(cuts.size()) != num_stages - 1 || !is_ascending ||
      (!cuts.empty() && (cuts.front() < 1 || cuts.back() >= num_blocks))) {
    throw ConfigError(fmt::format(
        "first blocks of the stages: expected {} ascending block numbers from 1 to {} (stages 2 to {}); found [{}]",
        num_stages - 1, num_blocks - 1, num_stages, fmt::join(cuts, ", ")));
  }

  std::vector<int> layer_of_block;
  for (int layer = 0; layer < backbone.num_layers(); ++layer) {
    if (backbone.chain[static_cast<std::size_t>(layer)].kind == LayerKind::kBlock) layer_of_block.push_back(layer);
  }
  std::vector<LayerRange> ranges;
  int first = 0;
  for (const auto cut : cuts) {
    const int end = layer_of_block[static_cast<std::size_t>(cut)];
    ranges.push_back({first, end});
    first = end;
  }
  ranges.push_back({first, backbone.num_layers()});
  return ranges;
}

MappedBytes::~MappedBytes() {
  for (const auto& [address, bytes] : views_) add_external_bytes(-bytes);
}

void MappedBytes::add(const at::Tensor& view) {
  const auto bytes = static_cast<std::int64_t>(view.nbytes());
  if (views_.emplace(view.const_data_ptr(), bytes).second) add_external_bytes(bytes);
}

void MappedBytes::remove(const at::Tensor& view) {
  const auto found = views_.find(view.const_data_ptr());
  if (found == views_.end()) return;
  add_external_bytes(-found->second);
  views_.erase(found);
}

StageSlice::StageSlice(const Backbone& backbone, LayerRange range, const WeightSource& weights,
                       const SliceOptions& options)
    : backbone_(backbone), range_(range), options_(options) {
  ESPALIER_CHECK(0 <= range.first && range.first < range.end && range.end <= backbone.num_layers(),
                 "layers {} to {} of {}", range.first, range.end, backbone.num_layers());
  WeightLoader loader(backbone_, weights, options_, mapped_);
  for (int layer = range.first; layer < range.end; ++layer) {
    layers_.push_back(make_layer(backbone_.chain[static_cast<std::size_t>(layer)]));
    loader.load(*layers_.back());
  }
  loader.check();
}

StageInputs StageSlice::prepare(NamedTensors tensors) const {
  check_inputs(backbone_, tensors);
  StageInputs inputs;
  const auto mask = tensors.find("attention_mask");
  if (mask != tensors.end()) inputs.attention_bias = attention_bias_of(mask->second, options_);
  for (auto& [name, tensor] : tensors) tensor = tensor.to(options_.device);
  inputs.tensors = std::move(tensors);
  return inputs;
}

void StageSlice::make_trainable(at::Tensor& slot) {
  const auto owned = slot.detach().to(at::kFloat, /*non_blocking=*/false, /*copy=*/true, at::MemoryFormat::Contiguous);
  mapped_.remove(slot);
  slot = owned;
  slot.requires_grad_();
}

bool StageSlice::has_head() const {
  return layers_.back()->plan().kind == LayerKind::kHead;
}

void StageSlice::visit_weights(const WeightVisitor& visit) {
  for (const auto& layer : layers_) {
    layer->visit_weights([&](const std::string& role, at::Tensor& slot, const std::vector<std::int64_t>& shape) {
      visit(layer->plan().name + "." + role, slot, shape);
    });
  }
}

std::int64_t StageSlice::frozen_bytes() {
  std::int64_t bytes = 0;
  visit_weights([&](const std::string& /*name*/, const at::Tensor& slot, const std::vector<std::int64_t>& /*shape*/) {
    if (!slot.requires_grad()) bytes += static_cast<std::int64_t>(slot.nbytes());
  });
  return bytes;
}

void refuse_unknown_tensors(const Backbone& backbone, const WeightSource& weights) {
  std::set<std::string> known;
  visit_planned_weights(
      backbone, [&](const LayerPlan& layer, const std::string& role, const std::vector<std::int64_t>& /*shape*/) {
        for (auto& name : backbone.family->stored_weight(layer, role).names) known.insert(std::move(name));
      });
  std::vector<std::string> unknown;
  for (auto& name : weights.names()) {
    if (!known.contains(name) && !backbone.family->is_known_extra(name)) unknown.push_back(std::move(name));
  }
  if (unknown.empty()) return;
  throw ConfigError(
      fmt::format("{}: expected tensors of a {} model with {} blocks only; found {} unknown: {} (is config.json of the "
                  "same model?)",
                  backbone.folder.string(), backbone.family->model_type(), backbone.num_blocks(), unknown.size(),
                  fmt::join(unknown, ", ")));
}

}  // namespace espalier::model
