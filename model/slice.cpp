// SPDX-License-Identifier: Apache-2.0
// B batch, T tokens
#include "model/slice.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <set>

#include "common/check.h"
#include "common/counting_allocator.h"
#include "common/error.h"
#include "model/block_layer.h"
#include "model/embedding_layer.h"
#include "model/final_layer.h"
#include "model/head_layer.h"
#include "model/patch_embedding_layer.h"
#include "model/weight_loader.h"

namespace espalier::model {

std::unique_ptr<Layer> make_layer(const LayerPlan& plan) {
  switch (plan.kind) {
    case LayerKind::kEmbedding:
      return std::make_unique<EmbeddingLayer>(plan);
    case LayerKind::kBlock:
      return std::make_unique<BlockLayer>(plan);
    case LayerKind::kPatchEmbedding:
      return std::make_unique<PatchEmbeddingLayer>(plan);
    case LayerKind::kFinal:
      return std::make_unique<FinalLayer>(plan);
    case LayerKind::kHead:
      if (plan.head->is_language_model) return std::make_unique<LanguageModelHeadLayer>(plan);
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

void visit_stored_tensors(const Backbone& backbone,
                          const std::function<void(const LayerPlan& layer, const StoredWeight& stored,
                                                   const std::vector<std::int64_t>& shape)>& visit) {
  std::set<std::string> seen;
  visit_planned_weights(
      backbone, [&](const LayerPlan& layer, const std::string& role, const std::vector<std::int64_t>& shape) {
        const auto stored = backbone.family->stored_weight(layer, role);
        const bool is_tied = std::any_of(stored.tied_names.begin(), stored.tied_names.end(),
                                         [&](const std::string& name) { return seen.contains(name); });
        if (is_tied || !seen.insert(stored.names.front()).second) return;
        auto stored_shape = shape;
        stored_shape.front() *= stored.num_parts;
        if (stored.is_transposed) std::reverse(stored_shape.begin(), stored_shape.end());
        visit(layer, stored, stored_shape);
      });
}

std::unique_ptr<WeightSource> random_backbone_weights(const Backbone& backbone, std::uint64_t seed) {
  std::vector<std::pair<std::string, std::vector<std::int64_t>>> shapes;
  visit_stored_tensors(
      backbone, [&](const LayerPlan& /*layer*/, const StoredWeight& stored, const std::vector<std::int64_t>& shape) {
        if (!stored.is_task) shapes.emplace_back(stored.names.front(), shape);
      });
  visit_planned_weights(
      backbone, [&](const LayerPlan& layer, const std::string& role, const std::vector<std::int64_t>& shape) {
        // Of the task, but pretrained.
        const bool is_pooler = layer.head && layer.head->dense_is_pooler && role.starts_with("dense.");
        if (is_pooler) shapes.emplace_back(backbone.family->stored_weight(layer, role).names.front(), shape);
      });
  return random_weights(shapes, backbone.initializer_range, seed);
}

std::vector<LayerRange> plan_stages(const Backbone& backbone, int num_stages,
                                    const std::vector<std::int64_t>& first_blocks) {
  const int num_blocks = backbone.num_blocks();
  if (num_stages < 1 || num_stages > num_blocks) {
    throw ConfigError(
        fmt::format("parallel.stages: expected 1 to {} (a stage holds at least one of the model's blocks); found {}",
                    num_blocks, num_stages));
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
        "parallel.first_blocks: expected {} ascending block numbers from 1 to {} (stages 2 to {}); found [{}]",
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

namespace {

/// Blocks of a stack.
std::int64_t height_of(const Backbone& backbone, Stack stack) {
  return std::count_if(backbone.chain.begin(), backbone.chain.end(),
                       [&](const LayerPlan& layer) { return layer.block && layer.stack == stack; });
}

/// The plan of a layer that is run with these options.
LayerPlan with_drop_path(LayerPlan plan, const Backbone& backbone, const SliceOptions& options) {
  if (!plan.block || options.drop_path == 0) return plan;
  const auto height = height_of(backbone, plan.stack);
  plan.block->drop_path = options.drop_path * static_cast<double>(plan.number) / static_cast<double>(height - 1);
  return plan;
}

void check_drop_path(const Backbone& backbone, const SliceOptions& options) {
  if (options.drop_path == 0) return;
  for (const auto& layer : backbone.chain) {
    if (!layer.block || height_of(backbone, layer.stack) > 1) continue;
    throw ConfigError(
        fmt::format("model.drop_path: expected 0 for a model with a stack of one block, whose lowest block is never "
                    "left out; found {} and {} alone; leave model.drop_path out",
                    options.drop_path, layer.name));
  }
}

}  // namespace

void StageSlice::load_layers(WeightLoader& loader) {
  for (int layer = range_.first; layer < range_.end; ++layer) {
    layers_.push_back(
        make_layer(with_drop_path(backbone_.chain[static_cast<std::size_t>(layer)], backbone_, options_)));
    loader.load(*layers_.back());
  }
  loader.check();
}

StageSlice::StageSlice(const Backbone& backbone, LayerRange range, const WeightSource& weights,
                       const SliceOptions& options)
    : backbone_(backbone), range_(range), options_(options) {
  ESPALIER_CHECK(0 <= range.first && range.first < range.end && range.end <= backbone.num_layers(),
                 "layers {} to {} of {}", range.first, range.end, backbone.num_layers());
  check_drop_path(backbone_, options_);
  WeightLoader loader(backbone_, weights, options_, mapped_);
  load_layers(loader);
}

StageSlice::StageSlice(StageSlice& base, const Backbone& backbone, const WeightSource& weights, std::uint64_t seed)
    : backbone_(backbone), range_(base.range_), options_(base.options_) {
  options_.seed = seed;
  std::map<std::string, at::Tensor> shared;
  base.visit_weights([&](const std::string& name, const at::Tensor& slot, const std::vector<std::int64_t>& /*shape*/) {
    shared.emplace(name, slot);
  });
  WeightLoader loader(backbone_, weights, options_, mapped_, &shared);
  load_layers(loader);
}

void StageSlice::make_trainable(at::Tensor& slot) {
  const auto owned = slot.detach().to(at::kFloat, /*non_blocking=*/false, /*copy=*/true, at::MemoryFormat::Contiguous);
  mapped_.remove(slot);
  slot = owned;
  slot.requires_grad_();
}

void StageSlice::set_prompts(std::int64_t count, at::Tensor prompts) {
  ESPALIER_CHECK(backbone_.chain.front().embedding && (range_.first == 0) == prompts.defined(),
                 "prompts stand before the words of the first slice");
  num_prompts_ = count;
  prompts_ = std::move(prompts);
}

bool StageSlice::has_task_head() const {
  const auto& plan = layers_.back()->plan();
  return plan.head && !plan.head->is_language_model;
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
  std::set<const void*> seen;  // the places of a tied weight share its memory
  visit_weights([&](const std::string& /*name*/, const at::Tensor& slot, const std::vector<std::int64_t>& /*shape*/) {
    const bool is_first = seen.insert(slot.const_data_ptr()).second;
    if (!slot.requires_grad() && is_first) bytes += static_cast<std::int64_t>(slot.nbytes());
  });
  return bytes;
}

void refuse_unknown_tensors(const Backbone& backbone, const WeightSource& weights) {
  std::set<std::string> known;
  visit_planned_weights(
      backbone, [&](const LayerPlan& layer, const std::string& role, const std::vector<std::int64_t>& /*shape*/) {
        auto stored = backbone.family->stored_weight(layer, role);
        for (auto* names : {&stored.names, &stored.tied_names}) {
          for (auto& name : *names) known.insert(std::move(name));
        }
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
