// SPDX-License-Identifier: Apache-2.0
#include "peft/rosa.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "common/error.h"
#include "peft/trained_set.h"

namespace espalier::peft {
namespace {

constexpr const char* kRosaTargetsKey = "peft.rosa.targets";

const std::string kJoined = "attention.query_key_value";
const std::vector<std::string> kParts = {"attention.query", "attention.key", "attention.value"};

bool joins(const RosaConfig& config) {
  return std::find(config.targets.begin(), config.targets.end(), kJoined) != config.targets.end();
}

/// With the linears in place of the matrix that joins them.
std::vector<std::string> linear_targets(const RosaConfig& config) {
  std::vector<std::string> targets;
  for (const std::string& target : config.targets) {
    if (target == kJoined) {
      targets.insert(targets.end(), kParts.begin(), kParts.end());
    } else {
      targets.push_back(target);
    }
  }
  return targets;
}

/// One tensor of the folder holds the three.
bool stores_joined(const model::Backbone& backbone, const model::LayerPlan& layer) {
  const auto names = [&](const std::string& part) {
    return backbone.family->stored_weight(layer, part + ".weight").names;
  };
  return names(kParts[0]) == names(kParts[1]) && names(kParts[1]) == names(kParts[2]);
}

void check(const RosaConfig& config, const model::Backbone& backbone) {
  check_targets(kRosaTargetsKey, linear_targets(config), backbone);
  for (const model::LayerPlan& layer : backbone.chain) {
    if (layer.block && joins(config) && !stores_joined(backbone, layer)) {
      throw ConfigError(fmt::format(
          "{}: expected {}, {} and {} of {}, which stores them apart, found {}; that is for models like GPT-2",
          kRosaTargetsKey, kParts[0], kParts[1], kParts[2], backbone.family->model_type(), kJoined));
    }
  }
  if (config.rank >= 1 && config.rank != std::floor(config.rank)) {
    throw ConfigError(fmt::format(
        "peft.rosa.rank: expected an integer, or a share of the smaller width below 1, found {}", config.rank));
  }
  if (config.every_steps > 0 && config.every_epochs != RosaConfig().every_epochs) {
    throw ConfigError(fmt::format(
        "peft.rosa.every_steps: expected 0 beside peft.rosa.every_epochs={}, which says the same in epochs, found {}; "
        "give one of them",
        config.every_epochs, config.every_steps));
  }
  if (config.split == "random_add" && config.trained_factors == "b") {
    throw ConfigError(
        "peft.rosa.trained_factors=b: expected both or a with split=random_add, whose A starts at 0 and would hold B's "
        "gradient at 0, found b");
  }
}

BiasChoice biases_of(const RosaConfig& config) {
  return {config.biases, linear_targets(config)};
}

bool trains(const RosaConfig& config, const char* factor) {
  return config.trained_factors == "both" || config.trained_factors == factor;
}

}  // namespace

void describe(OptionTable& table, RosaConfig& config) {
  table.add("peft.rosa.rank", config.rank)
      .above(0)
      .help(
          "Directions of a weight that train at a time: an integer, or below 1 a share of the weight's smaller width. "
          "From that width on the weight itself trains.");
  table.add(kRosaTargetsKey, config.targets)
      .help(
          "Roles of the linears that are adapted, in every block: as of peft.lora.targets. "
          "attention.query_key_value: GPT-2's c_attn as one matrix.");
  table.add("peft.rosa.sampling", config.sampling)
      .choices({"window", "uniform", "top", "bottom"})
      .help(
          "Which singular directions an event draws. window: consecutive ones. uniform: any. top, bottom: those of the "
          "largest, the smallest singular values.");
  table.add("peft.rosa.sigma", config.sigma)
      .choices({"a", "both"})
      .help("Where the singular values go: onto A, or their root onto A and onto B.");
  table.add("peft.rosa.split", config.split)
      .choices({"subspace", "add", "random_add"})
      .help(
          "subspace: the directions leave the frozen rest, so the function stays. add: they stay in it too, so it does "
          "not. random_add: A is 0 and B random.");
  table.add("peft.rosa.trained_factors", config.trained_factors)
      .choices({"both", "a", "b"})
      .help("Which factors train.");
  table.add("peft.rosa.factors_decay", config.factors_decay)
      .help(
          "Weight decay acts on the factors, which are directions of the pretrained weight and not a change of it. "
          "false: on the head alone.");
  describe_biases(table, "rosa", config.biases);
  table.add("peft.rosa.every_epochs", config.every_epochs)
      .at_least(0)
      .unit("epochs")
      .help("Directions are drawn anew before every so many epochs. 0: before the first step alone.");
  table.add("peft.rosa.every_steps", config.every_steps)
      .at_least(0)
      .unit("steps")
      .help("The same in optimizer steps, in place of peft.rosa.every_epochs. 0: by epochs.");
  table.add("peft.rosa.head_trained", config.head_trained)
      .help("The task head trains. false: it stays as it starts, at random if the folder has none.");
  table.add("peft.rosa.svd_type", config.svd_type)
      .choices({"fp32", "fp64"})
      .help("Type in which weights are merged and cut. fp64: closer to the same function, at twice the time.");
  table.add("peft.rosa.svd_device", config.svd_device)
      .choices({"device", "cpu"})
      .help("Where they are. device: where the weights lie.");
}

std::int64_t rosa_rank(const RosaConfig& config, const LinearTarget& target) {
  const std::int64_t size = target.smaller_width();
  if (config.rank >= 1) {
    return std::min(static_cast<std::int64_t>(config.rank), size);
  }
  // 0.1 * 1280 must not become 127.
  const auto share = static_cast<std::int64_t>(std::floor(config.rank * static_cast<double>(size) + 1e-9));
  return std::max<std::int64_t>(1, share);
}

std::vector<RosaTarget> plan_rosa(const RosaConfig& config, const model::LayerPlan& layer) {
  std::vector<RosaTarget> planned;
  for (LinearTarget& linear : plan_targets(linear_targets(config), *layer.block, layer.name)) {
    const bool is_part = joins(config) && std::find(kParts.begin(), kParts.end(), linear.role) != kParts.end();
    if (is_part && linear.role != kParts.front()) {
      // Query, key and value follow one another.
      planned.back().whole.out_features += linear.out_features;
      planned.back().linears.push_back(std::move(linear));
      continue;
    }
    planned.push_back({linear, {linear}});
    if (is_part) planned.back().whole.role = kJoined;
  }
  return planned;
}

std::int64_t count_rosa(const RosaConfig& config, const model::Backbone& backbone) {
  check(config, backbone);
  std::int64_t count = 0;
  for (const model::LayerPlan& layer : backbone.chain) {
    if (!layer.block) {
      continue;
    }
    for (const auto& [target, linears] : plan_rosa(config, layer)) {
      const std::int64_t rank = rosa_rank(config, target);
      if (rank == target.smaller_width()) {
        count += target.in_features * target.out_features;
      } else {
        count += trains(config, "a") ? rank * target.in_features : 0;
        count += trains(config, "b") ? rank * target.out_features : 0;
      }
    }
  }
  return count + count_biases(biases_of(config), backbone);
}

at::Tensor RosaDelta::forward(const at::Tensor& x, const model::ForwardContext& /*context*/) const {
  return at::linear(at::linear(x, a.to(x.scalar_type())), own_b().to(x.scalar_type()));
}

RosaMethod::RosaMethod(const RosaConfig& config, model::StageSlice& slice, const model::WeightSource& weights,
                       std::uint64_t seed)
    : ChainMethod(slice,
                  {.first_trained_layer = first_trained_by_targets("rosa", biases_of(config), slice.backbone())}),
      config_(config),
      seed_(seed) {
  check(config_, slice.backbone());
  for (const auto& layer : slice.layers()) {
    train_biases(biases_of(config_), slice, *layer, weights, trained());
    if (model::TransformerBlock* block = layer->block()) {
      Linears linears;
      block->visit_linears([&](const std::string& role, model::Linear& linear) { linears.emplace(role, &linear); });
      for (const RosaTarget& target : plan_rosa(config_, layer->plan())) adapt(*layer, target, linears, weights);
    }
    if (layer->plan().head && !config_.head_trained) {
      keep_head(*layer, weights);
    } else {
      train_task_weights(slice, *layer, weights, trained());
    }
  }
}

at::Tensor RosaMethod::join_weights(model::Layer& layer, const RosaTarget& target, const Linears& linears,
                                    const model::WeightSource& weights) {
  std::vector<at::Tensor> parts;
  for (const LinearTarget& part : target.linears) {
    at::Tensor& weight = linears.at(part.role)->weight;
    // In fp32 whatever the compute type: a rest that is rounded is no longer what the factors were taken from.
    own_weight(slice(), layer.plan(), part.role + ".weight", weights, weight);
    weight.requires_grad_(false);
    parts.push_back(weight);
  }
  if (parts.size() == 1) return parts.front();
  at::Tensor joined = at::cat(parts);
  std::int64_t row = 0;
  for (const LinearTarget& part : target.linears) {
    linears.at(part.role)->weight = joined.narrow(0, row, part.out_features);
    row += part.out_features;
  }
  return joined;
}

void RosaMethod::adapt(model::Layer& layer, const RosaTarget& target, const Linears& linears,
                       const model::WeightSource& weights) {
  const auto& [whole, parts] = target;
  const std::string name = layer.plan().name + "." + whole.role;
  const std::int64_t rank = rosa_rank(config_, whole);
  if (rank == whole.smaller_width()) {
    for (const LinearTarget& part : parts) {
      at::Tensor& weight = linears.at(part.role)->weight;
      own_weight(slice(), layer.plan(), part.role + ".weight", weights, weight);
      trained().push_back(
          {.name = layer.plan().name + "." + part.role + ".weight", .value = weight, .decays = config_.factors_decay});
    }
    return;
  }
  const at::Tensor rest = join_weights(layer, target, linears, weights);
  kept_.emplace(name + ".weight", rest);
  const auto add_factor = [&](const char* factor, at::IntArrayRef shape) {
    const std::string full = name + ".rosa_" + factor;
    TrainedTensor tensor = make_trained(full, at::zeros(shape), slice().options().device);
    tensor.decays = config_.factors_decay;
    if (trains(config_, factor)) {
      trained().push_back(tensor);
    } else {
      kept_.emplace(full, tensor.value.requires_grad_(false));
    }
    return tensor.value;
  };
  const at::Tensor a = add_factor("a", {rank, whole.in_features});
  const at::Tensor b = add_factor("b", {whole.out_features, rank});
  weights_.push_back({name, {rest, a, b}});
  std::int64_t row = 0;
  for (const LinearTarget& part : parts) {
    auto delta = std::make_shared<RosaDelta>();
    delta->a = a;
    delta->b = b;
    if (parts.size() > 1) {
      delta->first_row = row;
      delta->num_rows = part.out_features;
    }
    row += part.out_features;
    linears.at(part.role)->delta = std::move(delta);
  }
}

void RosaMethod::keep_head(model::Layer& layer, const model::WeightSource& weights) {
  if (!slice().has_task_head()) {
    return;  // a language model's is part of the backbone
  }
  layer.visit_weights([&](const std::string& role, at::Tensor& slot, const std::vector<std::int64_t>& /*shape*/) {
    own_weight(slice(), layer.plan(), role, weights, slot);
    kept_.emplace(layer.plan().name + "." + role, slot.requires_grad_(false));
  });
}

std::optional<std::int64_t> RosaMethod::event_before(std::int64_t step, std::int64_t steps_per_epoch) const {
  if (step == 0) {
    return 0;
  }
  if (config_.every_steps > 0) {
    return step % config_.every_steps == 0 ? std::optional(step / config_.every_steps) : std::nullopt;
  }
  const std::int64_t epoch = step / steps_per_epoch + 1;  // the one that begins, counted from 1
  if (config_.every_epochs == 0 || step % steps_per_epoch != 0 || epoch % config_.every_epochs != 0) {
    return std::nullopt;
  }
  // Before the first epoch there is one event, whether the count asks for another there or not.
  return epoch / config_.every_epochs - 1 / config_.every_epochs;
}

WeightParts RosaMethod::parts(int weight) {
  const auto& [name, parts] = weights_.at(static_cast<std::size_t>(weight));
  return {{name + ".weight", parts.rest.detach()},
          {name + ".rosa_a", parts.a.detach()},
          {name + ".rosa_b", parts.b.detach()}};
}

void RosaMethod::resample(int weight, std::int64_t event) {
  Weight& chosen = weights_.at(static_cast<std::size_t>(weight));
  peft::resample(chosen.parts, config_, seed_, event, chosen.name);
}

nlohmann::json RosaMethod::describe_export() const {
  return {{"rank", config_.rank},
          {"targets", config_.targets},
          {"sampling", config_.sampling},
          {"sigma", config_.sigma},
          {"split", config_.split},
          {"trained_factors", config_.trained_factors},
          {"every_epochs", config_.every_epochs},
          {"every_steps", config_.every_steps},
          {"head_trained", config_.head_trained},
          {"biases", config_.biases},
          {"svd_type", config_.svd_type}};
}

}  // namespace espalier::peft
