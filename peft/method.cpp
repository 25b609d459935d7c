// SPDX-License-Identifier: Apache-2.0
#include "peft/method.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include "common/check.h"
#include "common/error.h"
#include "peft/adapter.h"
#include "peft/beside_method.h"
#include "peft/bitfit.h"
#include "peft/full.h"
#include "peft/last.h"
#include "peft/lora.h"
#include "peft/lst.h"
#include "peft/meft.h"
#include "peft/probe.h"
#include "peft/prompt.h"
#include "peft/rosa.h"

namespace espalier::peft {
namespace {

/// One method: the one list that options, construction and counting read.
struct Entry {
  std::string name;
  std::string help;
  /// Null for a side network.
  std::unique_ptr<Method> (*make)(const MethodConfig& config, model::StageSlice& slice,
                                  const model::WeightSource& weights, std::uint64_t seed);
  /// Trained scalars without the task head; null: none but those.
  std::int64_t (*count)(const MethodConfig& config, const model::Backbone& backbone);
  /// Null unless it is one.
  std::unique_ptr<SideNetwork> (*make_network)(const MethodConfig& config, model::StageSlice& slice,
                                               const model::WeightSource& weights, std::uint64_t seed) = nullptr;
};

const std::vector<Entry>& entries() {
  static const std::vector<Entry> all = {
      {"lst", "a narrow network beside the frozen backbone", nullptr,
       [](const auto& config, const auto& backbone) { return count_lst(config.lst, backbone); },
       [](const auto& config, auto& slice, const auto& weights, auto seed) -> std::unique_ptr<SideNetwork> {
         return std::make_unique<LstNetwork>(config.lst, slice, weights, seed);
       }},
      {"last", "modules of low-rank attention beside the frozen backbone", nullptr,
       [](const auto& config, const auto& backbone) { return count_last(config.last, backbone); },
       [](const auto& config, auto& slice, const auto& weights, auto seed) -> std::unique_ptr<SideNetwork> {
         return std::make_unique<LastNetwork>(config.last, slice, weights, seed);
       }},
      {"lora", "low-rank factors on linears of the backbone",
       [](const auto& config, auto& slice, const auto& weights, auto seed) -> std::unique_ptr<Method> {
         return std::make_unique<LoraMethod>(config.lora, slice, weights, seed);
       },
       [](const auto& config, const auto& backbone) { return count_lora(config.lora, backbone); }},
      {"rosa", "drawn singular directions of linears of the backbone, merged and drawn anew as training goes on",
       [](const auto& config, auto& slice, const auto& weights, auto seed) -> std::unique_ptr<Method> {
         return std::make_unique<RosaMethod>(config.rosa, slice, weights, seed);
       },
       [](const auto& config, const auto& backbone) { return count_rosa(config.rosa, backbone); }},
      {"adapter", "bottlenecks between or beside the parts of every block",
       [](const auto& config, auto& slice, const auto& weights, auto seed) -> std::unique_ptr<Method> {
         return std::make_unique<AdapterMethod>(config.adapter, slice, weights, seed);
       },
       [](const auto& config, const auto& backbone) { return count_adapter(config.adapter, backbone); }},
      {"bitfit", "the biases of the backbone",
       [](const auto& /*config*/, auto& slice, const auto& weights, auto /*seed*/) -> std::unique_ptr<Method> {
         return std::make_unique<BitFitMethod>(slice, weights);
       },
       [](const auto& /*config*/, const auto& backbone) { return count_bitfit(backbone); }},
      {"prompt", "vectors in front of the words",
       [](const auto& config, auto& slice, const auto& weights, auto seed) -> std::unique_ptr<Method> {
         return std::make_unique<PromptMethod>(config.prompt, slice, weights, seed);
       },
       [](const auto& config, const auto& backbone) { return count_prompt(config.prompt, backbone); }},
      {"meft", "adapters in a backbone made reversible, whose activations are recomputed",
       [](const auto& config, auto& slice, const auto& weights, auto seed) -> std::unique_ptr<Method> {
         return std::make_unique<MeftMethod>(config, slice, weights, seed);
       },
       [](const auto& config, const auto& backbone) {
         return count_meft(config.meft, backbone) + count_meft_factors(config, backbone);
       }},
      {"full", "everything",
       [](const auto& /*config*/, auto& slice, const auto& weights, auto /*seed*/) -> std::unique_ptr<Method> {
         return std::make_unique<FullMethod>(slice, weights);
       },
       [](const auto& /*config*/, const auto& backbone) { return count_full(backbone); }},
      {"probe", "the task head alone",
       [](const auto& /*config*/, auto& slice, const auto& weights, auto /*seed*/) -> std::unique_ptr<Method> {
         return std::make_unique<ProbeMethod>(slice, weights);
       },
       nullptr},
  };
  return all;
}

const Entry& entry_of(const MethodConfig& config) {
  for (const Entry& entry : entries()) {
    if (entry.name == config.method) {
      return entry;
    }
  }
  throw ConfigError(
      fmt::format("peft.method: expected one of {}, found '{}'", fmt::join(method_names(), ", "), config.method));
}

}  // namespace

std::vector<std::string> method_names() {
  std::vector<std::string> names;
  for (const Entry& entry : entries()) {
    names.push_back(entry.name);
  }
  return names;
}

void describe(OptionTable& table, MethodConfig& config) {
  std::string help = "What trains, besides the task head, which trains with all of them.";
  for (const Entry& entry : entries()) {
    help += fmt::format(" {}: {}.", entry.name, entry.help);
  }
  table.add("peft.method", config.method).choices(method_names()).help(help);
  table.add("peft.seed", config.seed)
      .at_least(-1)
      .help(
          "Seed of what trains: of its start and, of a side network, its dropout. The order of rows and the backbone's "
          "dropout stay with train.seed. -1: train.seed.");
  describe(table, config.lst);
  describe(table, config.last);
  describe(table, config.lora);
  describe(table, config.rosa);
  describe(table, config.meft);
  describe(table, config.adapter);
  describe(table, config.prompt);
}

std::uint64_t trained_seed(const MethodConfig& config, std::uint64_t seed) {
  return config.seed < 0 ? seed : static_cast<std::uint64_t>(config.seed);
}

std::unique_ptr<Method> make_method(const MethodConfig& config, model::StageSlice& slice,
                                    const model::WeightSource& weights, std::uint64_t seed) {
  const Entry& entry = entry_of(config);
  if (entry.make_network != nullptr) {
    return make_joint_method({{"", config, slice.backbone()}}, slice, weights, seed, /*is_batched=*/false);
  }
  return entry.make(config, slice, weights, trained_seed(config, seed));
}

std::unique_ptr<Method> make_joint_method(const std::vector<ObjectiveRequest>& objectives, model::StageSlice& slice,
                                          const model::WeightSource& weights, std::uint64_t seed, bool is_batched) {
  std::vector<SideObjective> parts;
  for (const ObjectiveRequest& request : objectives) {
    const Entry& entry = entry_of(request.method);
    if (entry.make_network == nullptr) {
      throw ConfigError(
          fmt::format("objective {}: expected a method beside the backbone (lst, last), since objectives share one "
                      "frozen forward; found peft.method={}; train it in a run of its own",
                      request.name, request.method.method));
    }
    const std::uint64_t own_seed = trained_seed(request.method, seed);
    SideObjective part{.part = {.name = request.name}};
    if (!parts.empty()) {
      part.slice = std::make_unique<model::StageSlice>(slice, request.backbone, weights, own_seed);
    }
    part.network = entry.make_network(request.method, part.slice ? *part.slice : slice, weights, own_seed);
    if (request.method.seed >= 0) {
      part.dropout_seed = own_seed;
    }
    parts.push_back(std::move(part));
  }
  return std::make_unique<BesideMethod>(slice, std::move(parts), is_batched);
}

std::vector<Objective> Method::objectives() {
  return {{.end_trained = static_cast<int>(trained().size()), .facts = describe_export()}};
}

TrainedCount count_trained(const MethodConfig& config, const model::Backbone& backbone) {
  TrainedCount count;
  const bool runs_rosa = config.method == "rosa" || (config.method == "meft" && config.meft.factors == "rosa");
  const bool trains_head = !runs_rosa || config.rosa.head_trained;
  model::visit_stored_tensors(backbone, [&](const model::LayerPlan& layer, const model::StoredWeight& stored,
                                            const std::vector<std::int64_t>& shape) {
    if ((trains_head || !layer.head) && stored.is_task && !stored.is_buffer) {
      count.head += c10::multiply_integers(shape);
    }
  });
  if (const model::LayerPlan& last = backbone.chain.back(); trains_head && freezes_pooler(config, last)) {
    count.head -= last.head->width * (last.head->width + 1);
  }
  const Entry& entry = entry_of(config);
  count.method = entry.count != nullptr ? entry.count(config, backbone) : 0;
  return count;
}

}  // namespace espalier::peft
