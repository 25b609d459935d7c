// SPDX-License-Identifier: Apache-2.0
// B batch, T tokens, D width
#include "peft/meft.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>

#include "common/check.h"
#include "common/error.h"
#include "model/initial.h"
#include "model/weight_loader.h"
#include "peft/lora.h"
#include "peft/rosa.h"
#include "peft/trained_set.h"

namespace espalier::peft {
namespace {

// Of the older of the two states in the sum merge, as released.
constexpr double kOlderShare = 0.1;

/// Steps from one measurement of an inexact inversion to the next.
constexpr std::uint64_t kCheckedEvery = 64;

MeftSetting make_setting(const MeftConfig& config, const model::StageSlice& slice) {
  // Streams never lie below fp32, whatever the blocks compute in.
  const at::ScalarType real_type = at::promote_types(slice.options().compute_type, at::kFloat);
  const bool is_exact = config.inversion == "exact";
  return {.plan = plan_meft(config, slice.backbone()),
          .arithmetic = is_exact ? make_fixed_point(config.fraction_bits, real_type) : make_floating_point(real_type),
          .check = InversionCheck(is_exact ? 0 : config.error_limit)};
}

/// The options of the factors, whose targets stand in adapted blocks alone: below, no gradient would reach them.
template <typename Factors>
Factors factors_within(const char* method, Factors factors, const MeftPlan& plan, const model::Backbone& backbone) {
  if (factors.biases != "none") {
    throw ConfigError(fmt::format(
        "peft.{}.biases: expected none inside MEFT, whose halves have gradients for factors alone, found {}", method,
        factors.biases));
  }
  const bool is_frozen_below = std::any_of(backbone.chain.begin(), backbone.chain.end(), [&](const auto& layer) {
    return layer.block && !plan.is_adapted(static_cast<int>(layer.index));
  });
  if (is_frozen_below) {
    factors.targets = targets_within(fmt::format("peft.{}.targets", method), factors.targets, backbone,
                                     [&](int layer) { return plan.is_adapted(layer); });
  }
  return factors;
}

/// Null: none.
std::unique_ptr<Method> make_factors(const MethodConfig& config, const MeftPlan& plan, model::StageSlice& slice,
                                     const model::WeightSource& weights, std::uint64_t seed) {
  const model::Backbone& backbone = slice.backbone();
  if (config.meft.factors == "rosa") {
    return std::make_unique<RosaMethod>(factors_within("rosa", config.rosa, plan, backbone), slice, weights, seed);
  }
  if (config.meft.factors != "lora") return nullptr;
  return std::make_unique<LoraMethod>(factors_within("lora", config.lora, plan, backbone), slice, weights, seed);
}

}  // namespace

std::int64_t count_meft_factors(const MethodConfig& config, const model::Backbone& backbone) {
  if (config.meft.factors == "none") return 0;
  const MeftPlan plan = plan_meft(config.meft, backbone);
  return config.meft.factors == "lora" ? count_lora(factors_within("lora", config.lora, plan, backbone), backbone)
                                       : count_rosa(factors_within("rosa", config.rosa, plan, backbone), backbone);
}

bool freezes_pooler(const MethodConfig& config, const model::LayerPlan& layer) {
  return config.method == "meft" && !config.meft.pooler_trained && layer.head && layer.head->dense_is_pooler;
}

MeftMethod::MeftMethod(const MethodConfig& config, model::StageSlice& slice, const model::WeightSource& weights,
                       std::uint64_t seed)
    : config_(config.meft), slice_(slice), setting_(make_setting(config.meft, slice)) {
  check_cut(slice.range().first);
  check_cut(slice.range().end);
  const model::Backbone& backbone = slice.backbone();
  const MeftPlan& plan = setting_.plan;
  factors_ = make_factors(config, plan, slice, weights, seed);
  for (const auto& layer : slice.layers()) {
    const int index = static_cast<int>(layer->plan().index);
    if (plan.is_adapted(index)) {
      blocks_.emplace(std::piecewise_construct, std::forward_as_tuple(index),
                      std::forward_as_tuple(config_, plan, slice, *layer, factors_of(*layer), seed, trained_));
      continue;
    }
    const int first = static_cast<int>(trained_.size());
    if (plan.has_streams_before(index) && plan.merges[static_cast<std::size_t>(index) - 1] == MeftMerge::kConcat) {
      const std::string& block = backbone.layer(index - 1).name;
      const std::string name = block.substr(0, block.rfind('.')) + ".merge.weight";
      const auto start =
          model::normal_by_name({backbone.width, 2 * backbone.width}, backbone.initializer_range, seed, name);
      trained_.push_back(make_trained(name, start, slice.options().device));
      merge_weights_.emplace(index, trained_.back().value);
    }
    if (factors_) {
      const auto task = factors_of(*layer);
      trained_.insert(trained_.end(), task.begin(), task.end());
    } else {
      train_task_weights(slice, *layer, weights, trained_);
    }
    if (freezes_pooler(config, layer->plan())) freeze_pooler(*layer, weights);
    joint_trained_[index] = {first, {trained_.begin() + first, trained_.end()}};
  }
}

std::vector<TrainedTensor> MeftMethod::factors_of(const model::Layer& layer) const {
  std::vector<TrainedTensor> found;
  if (!factors_) return found;
  std::copy_if(factors_->trained().begin(), factors_->trained().end(), std::back_inserter(found),
               [&](const TrainedTensor& tensor) { return tensor.name.starts_with(layer.plan().name + "."); });
  return found;
}

void MeftMethod::freeze_pooler(model::Layer& head, const model::WeightSource& weights) {
  head.visit_weights([&](const std::string& role, at::Tensor& slot, const std::vector<std::int64_t>& /*shape*/) {
    if (!role.starts_with("dense.")) return;
    const auto stored = slice_.backbone().family->stored_weight(head.plan(), role);
    if (model::present_names(stored, weights).empty()) {
      throw ConfigError(fmt::format(
          "peft.meft.pooler_trained=false: expected the pooler in {}, found none, so it would stay as it is drawn; "
          "take peft.meft.pooler_trained=true, or model.pooling=mean, which reads none",
          slice_.backbone().folder.string()));
    }
    slot.requires_grad_(false);
  });
  const std::string prefix = head.plan().name + ".dense.";
  std::erase_if(trained_, [&](const TrainedTensor& tensor) { return tensor.name.starts_with(prefix); });
}

std::map<std::string, at::Tensor> MeftMethod::kept_tensors() const {
  return factors_ ? factors_->kept_tensors() : Method::kept_tensors();
}

Resampling* MeftMethod::resampling() {
  return factors_ ? factors_->resampling() : nullptr;
}

void MeftMethod::check_cut(int layer) const {
  const MeftPlan& plan = setting_.plan;
  const bool cuts_streams = layer > 0 && layer < slice_.backbone().num_layers() && plan.has_streams_before(layer) &&
                            plan.role(layer - 1) == MeftRole::kReversible;
  if (!cuts_streams || config_.inversion == "exact" || is_anchor(layer)) return;
  // Every cut restarts the inversion from true streams, so the last digits would tell where it was.
  throw ConfigError(fmt::format(
      "peft.meft.inversion={}: expected {}, found a stage that begins with {}: an inexact inversion gives other "
      "results "
      "there. Take peft.meft.inversion=exact, or other stages",
      config_.inversion,
      config_.inversion == "float"
          ? std::string("all blocks on one stage")
          : fmt::format("stages that begin at a multiple of peft.meft.anchor_layers={} blocks", config_.anchor_layers),
      slice_.backbone().layer(layer).name));
}

bool MeftMethod::is_anchor(int layer) const {
  return config_.inversion == "anchored" && setting_.plan.is_adapted(layer) &&
         setting_.plan.heights[static_cast<std::size_t>(layer)] % config_.anchor_layers == 0;
}

bool MeftMethod::is_reversible_here(int layer) const {
  return slice_.range().contains(layer) && setting_.plan.role(layer) == MeftRole::kReversible;
}

MeftBlockStep::Neighbours MeftMethod::neighbours_of(int layer) const {
  const auto hands_down = [this](int above) { return is_reversible_here(above) && !is_anchor(above); };
  return {.keeps_output = !hands_down(layer + 1), .inverts_below = hands_down(layer) && is_reversible_here(layer - 1)};
}

const model::Layer& MeftMethod::layer(int index) const {
  return *slice_.layers()[static_cast<std::size_t>(index - slice_.range().first)];
}

model::CarryPlan MeftMethod::plan_carry(int first_layer, const model::BatchShape& shape) const {
  const MeftPlan& plan = setting_.plan;
  model::CarryPlan entries, streams;
  for (auto& entry : model::plan_chain_carry(slice_.backbone(), first_layer, shape, slice_.options().compute_type)) {
    if (entry.name == "memory") {
      entry.needs_gradient = plan.memory_trains;
    } else if (entry.name == "hidden" && plan.has_streams_before(first_layer)) {
      for (const char* name : {kFirstStream, kSecondStream}) {
        streams.push_back(
            {.name = name, .sizes = entry.sizes, .dtype = setting_.arithmetic->stream_type(), .needs_gradient = true});
      }
      continue;
    } else if (entry.name == "hidden") {
      entry.needs_gradient = plan.needs_gradient(first_layer);
    }
    entries.push_back(std::move(entry));
  }
  entries.insert(entries.end(), streams.begin(), streams.end());
  return entries;
}

StageResult MeftMethod::forward(model::Carry incoming, const model::StageInputs& inputs,
                                const model::ForwardContext& context, bool keeps_pass) {
  const at::NoGradGuard no_grad;
  const model::LayerRange range = slice_.range();
  auto pass = keeps_pass ? std::make_unique<MeftPass>() : nullptr;
  Climb climb{.around = {std::move(incoming), inputs, context}, .streams = {}, .pass = pass.get()};
  // An exact inversion that holds once in a process holds. The error of a real one grows with the adapters: it is
  // measured in the same micro-batches of a run on any layout, and after a resume.
  const bool is_due = config_.inversion == "exact"
                          ? !setting_.check.error().has_value()
                          : context.key.micro_batch == 0 && context.key.step % kCheckedEvery == 0;
  climb.is_checked = keeps_pass && is_due;
  model::Carry& carry = climb.around.carry;
  if (setting_.plan.has_streams_before(range.first)) {
    climb.streams = Streams{std::move(carry.at(kFirstStream)), std::move(carry.at(kSecondStream))};
    carry.erase(kFirstStream);
    carry.erase(kSecondStream);
  }
  for (int index = range.first; index < range.end;) {
    if (setting_.plan.is_adapted(index)) {
      run_block(index++, climb);
    } else if (setting_.plan.role(index) == MeftRole::kJoint) {
      run_joint(index++, climb);
    } else {
      layer(index++).forward(carry, inputs, context);
    }
  }

  StageResult result;
  if (range.end == slice_.backbone().num_layers()) {
    result.outgoing.emplace("logits", carry.at("logits"));
    if (!keeps_pass) result.outgoing.emplace("hidden", carry.at("hidden"));
  } else {
    if (climb.streams) {
      carry[kFirstStream] = climb.streams->first;
      carry[kSecondStream] = climb.streams->second;
    }
    for (const auto& entry : plan_carry(range.end, {})) {
      result.outgoing.emplace(entry.name, carry.at(entry.name));
    }
  }
  if (pass && !pass->is_empty()) result.pass = std::move(pass);
  return result;
}

void MeftMethod::run_block(int index, Climb& climb) {
  const MeftBlock& block = blocks_.at(index);
  if (!climb.streams) {
    const at::Tensor start =
        setting_.arithmetic->enter(climb.around.carry.extract("hidden").mapped(), block.place().name);
    climb.streams = Streams{start, start};
    if (climb.pass && setting_.plan.needs_gradient(index)) climb.pass->add(std::make_unique<MeftEntryStep>());
  }
  std::unique_ptr<MeftStep> step;
  MeftBlockStep::forward(setting_, block, *climb.streams, climb.around, neighbours_of(index), climb.is_checked,
                         climb.pass ? &step : nullptr);
  if (climb.pass) climb.pass->add(std::move(step));
}

void MeftMethod::run_joint(int index, Climb& climb) {
  // A graph for each layer: sums inside it are then the same wherever the chain is cut.
  const at::AutoGradMode with_gradient(climb.pass != nullptr);
  model::Carry& carry = climb.around.carry;
  model::Carry leaves = enter_joint(index, climb);
  layer(index).forward(carry, climb.around.inputs, climb.around.context);
  model::Carry outputs;
  for (const char* name : {"hidden", "logits", "memory"}) {
    const auto found = carry.find(name);
    const bool is_read = name != std::string_view("hidden") || !carry.contains("logits");
    if (found != carry.end() && is_read && found->second.requires_grad() && !found->second.is_leaf()) {
      outputs.emplace(name, found->second);
    }
  }
  for (auto& [name, value] : carry) value = value.detach();
  if (climb.pass && !outputs.empty()) {
    climb.pass->add(std::make_unique<MeftJointStep>(std::move(leaves), std::move(outputs), joint_trained_.at(index)));
  }
}

model::Carry MeftMethod::enter_joint(int index, Climb& climb) const {
  const MeftPlan& plan = setting_.plan;
  model::Carry& carry = climb.around.carry;
  model::Carry leaves;
  const auto make_leaf = [&](const char* name, const at::Tensor& value) {
    at::Tensor leaf = value.detach();
    if (climb.pass) leaves.emplace(name, leaf.requires_grad_());
    return leaf;
  };
  if (climb.streams) {
    const at::Tensor x1 = make_leaf(kFirstStream, setting_.arithmetic->read(climb.streams->first));
    const at::Tensor x2 = make_leaf(kSecondStream, setting_.arithmetic->read(climb.streams->second));
    climb.streams.reset();
    carry["hidden"] = merge(index, x1, x2).to(slice_.options().compute_type);
  } else if (plan.needs_gradient(index)) {
    // An alias, since the leaf itself would not count as made here where the layer hands it on as "memory".
    carry["hidden"] = at::alias(make_leaf("hidden", carry.at("hidden")));
  }
  if (plan.memory_trains && layer(index).plan().block && carry.contains("memory")) {
    carry["memory"] = make_leaf("memory", carry.at("memory"));
  }
  return leaves;
}

at::Tensor MeftMethod::merge(int reader, const at::Tensor& x1, const at::Tensor& x2) const {
  switch (setting_.plan.merges[static_cast<std::size_t>(reader) - 1]) {
    case MeftMerge::kMean:
      return (x1 + x2) * 0.5;
    case MeftMerge::kSum:
      // After the switch of MEFT2 the newest state is the first stream.
      return setting_.plan.variant == 2 ? x1 + kOlderShare * x2 : kOlderShare * x1 + x2;
    case MeftMerge::kConcat:
      break;
  }
  return at::linear(at::cat({x1, x2}, -1), merge_weights_.at(reader).to(x1.scalar_type()));
}

nlohmann::json MeftMethod::describe_export() const {
  const MeftPlan& plan = setting_.plan;
  std::map<std::string, std::string> merges;
  std::vector<std::string> adapted;
  for (const model::LayerPlan& layer : slice_.backbone().chain) {
    const int index = static_cast<int>(layer.index);
    if (plan.is_adapted(index)) adapted.push_back(layer.name);
    if (!plan.is_adapted(index) && plan.has_streams_before(index)) {
      const std::string& block = slice_.backbone().layer(index - 1).name;
      merges[block.substr(0, block.rfind('.'))] = merge_name(plan.merges[layer.index - 1]);
    }
  }
  auto factors = nlohmann::json::object();
  if (factors_) {
    factors["kind"] = factors_->name();
    factors.update(factors_->describe_export());
  }
  return {{"variant", plan.variant},
          {"rank", meft_rank(config_, slice_.backbone())},
          {"lambda", plan.lambda.value},
          {"beta", plan.beta.value},
          {"blocks", adapted},
          {"merge", merges},
          {"norm_in_adapter", config_.norm_in_adapter},
          {"factors", factors},
          {"inversion", config_.inversion},
          {"fraction_bits", config_.fraction_bits}};
}

}  // namespace espalier::peft
