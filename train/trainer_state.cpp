// SPDX-License-Identifier: Apache-2.0
// What a checkpoint of the trainer holds, and going on from one: trained and kept tensors, moments, the best tensors,
// the position. The position is the step alone, since the sampler and all randomness are functions of it.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <string_view>

#include "common/error.h"
#include "common/log.h"
#include "dist/agree.h"
#include "train/trainer.h"

namespace espalier::train {
namespace {

constexpr const char* kTrainedPrefix = "trained/";
constexpr const char* kKeptPrefix = "kept/";
constexpr const char* kMomentPrefix = "optimizer/";
constexpr const char* kBestPrefix = "best/";

using OptionTexts = std::map<std::string, std::string>;  // section.key -> value

/// Of INI text as OptionTable::canonical_text() writes it.
OptionTexts parse_options(const std::string& ini) {
  constexpr std::string_view kEquals = " = ";
  std::istringstream lines(ini);
  OptionTexts options;
  std::string section;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with('[')) {
      section = line.substr(1, line.find(']') - 1) + ".";
    } else if (const auto equals = line.find(kEquals); equals != std::string::npos) {
      options[section + line.substr(0, equals)] = line.substr(equals + kEquals.size());
    }
  }
  return options;
}

/// Each option that differs, on a line of its own. One that is not `stored` was added since the checkpoint was made,
/// when all was as its default has it.
std::string describe_differences(const OptionTexts& stored, const OptionTexts& now, const OptionTexts& defaults) {
  const auto find = [](const OptionTexts& options, const std::string& key) {
    const auto found = options.find(key);
    return found == options.end() ? std::nullopt : std::optional(found->second);
  };
  const auto shown = [](const std::optional<std::string>& value) {
    return !value ? "absent" : value->empty() ? "empty" : *value;
  };
  auto keys = stored;
  keys.insert(now.begin(), now.end());
  std::string text;
  for (const auto& [key, ignored] : keys) {
    const auto before = find(stored, key);
    const auto after = find(now, key);
    if (after != before && (before || after != find(defaults, key))) {
      text += fmt::format("\n  {}: {} in the checkpoint, {} now", key, shown(before), shown(after));
    }
  }
  return text;
}

}  // namespace

void Trainer::save(std::int64_t steps_done) {
  if (last_saved_step_ == steps_done) {
    return;
  }
  checkpoint::NamedTensors tensors;
  if (worker_.place().replica_index == 0) {
    std::set<std::string> saved;
    for (const auto& tensor : worker_.method().trained()) {
      if (!tensor.is_copy) saved.insert(tensor.name);
    }
    const auto kept = worker_.method().kept_tensors();
    for (const auto& [name, tensor] : kept) saved.insert(name);
    const auto add = [&](const char* prefix, const std::map<std::string, at::Tensor>& by_name) {
      for (const auto& [name, tensor] : by_name) {
        if (saved.contains(name.substr(0, name.find('/')))) tensors.emplace(prefix + name, tensor);
      }
    };
    add(kTrainedPrefix, trained_by_name());
    add(kKeptPrefix, kept);
    for (auto& objective : objectives_) {
      add(kMomentPrefix, objective.optimizer().state());
      std::map<std::string, at::Tensor> best;
      for (const auto& [name, tensor] : objective.best_tensors()) {
        best.emplace(peft::objective_prefix(objective.name()) + name, tensor);
      }
      add(kBestPrefix, best);
    }
  }
  nlohmann::json state = {{"step", steps_done},
                          {"options", config_.numeric_options},
                          {"threads", config_.threads},
                          {"base_model_digest", worker_.model_digest()},
                          {"dataset_digest", dataset_.info().content_digest}};
  for (const auto& objective : objectives_) {
    state["objectives"].push_back(objective.state());
  }
  progress_.end_line();
  last_checkpoint_ = store_->save(steps_done, tensors, state);
  last_saved_step_ = steps_done;
}

void Trainer::refuse_used_folder() {
  if (dist::agree_any(worker_.control(), !store_->steps().empty())) {
    dist::throw_agreed<ConfigError>(
        fmt::format("checkpoint.resume=never: expected a run folder without checkpoints, found some in {}; choose "
                    "another run.folder or resume=auto",
                    folder_.checkpoints().string()));
  }
}

void Trainer::require_same_run(const checkpoint::LoadedCheckpoint& loaded) const {
  const auto& state = loaded.state();
  const auto differences =
      describe_differences(parse_options(state.value("options", std::string())), parse_options(config_.numeric_options),
                           parse_options(config_.default_options));
  if (!differences.empty()) {
    dist::throw_agreed<ConfigError>(
        fmt::format("{}: the checkpoint was made with other options; give these back, or choose another run.folder:{}",
                    loaded.folder().string(), differences));
  }
  const auto require_same = [&](const char* key, const std::string& now, const char* what, const char* option) {
    const auto stored = state.value(key, std::string());
    if (stored != now) {
      dist::throw_agreed<ConfigError>(
          fmt::format("{}: the checkpoint was made with another {}; expected {}, found {}; give that one back as {}, "
                      "or choose another run.folder",
                      loaded.folder().string(), what, stored, now, option));
    }
  };
  require_same("base_model_digest", worker_.model_digest(), "backbone", "model.path");
  require_same("dataset_digest", dataset_.info().content_digest, "dataset", "data.path");
  if (state.value("threads", 0) != config_.threads) {
    log_warning("checkpoint", "made with {} threads per rank, now {}: results may differ in the last bits",
                state.value("threads", 0), config_.threads);
  }
}

void Trainer::restore(const checkpoint::LoadedCheckpoint& loaded) {
  const at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : trained_by_name()) {
    loaded.read_into(kTrainedPrefix + name, tensor);
  }
  for (const auto& [name, tensor] : worker_.method().kept_tensors()) {
    loaded.read_into(kKeptPrefix + name, tensor);
  }
  events_->resume_at(loaded.step());
  const auto& states = loaded.state().at("objectives");
  for (std::size_t k = 0; k < objectives_.size(); ++k) {
    auto& objective = objectives_[k];
    for (const auto& [name, tensor] : objective.optimizer().state()) {
      loaded.read_into(kMomentPrefix + name, tensor);
    }
    objective.optimizer().set_num_steps(loaded.step());
    objective.set_state(states.at(k));
    if (objective.best_step() >= 0 && config_.train.restore_best) {
      for (const auto& [name, tensor] : worker_.result(k)) {
        auto best = at::empty_like(tensor);
        loaded.read_into(kBestPrefix + peft::objective_prefix(objective.name()) + name, best);
        objective.best_tensors()[name] = best;
      }
    }
  }
}

void Trainer::resume() {
  const auto& mode = config_.checkpoint.resume;
  if (mode == "never") {
    refuse_used_folder();
    return;
  }
  const auto loaded = store_->load_latest();
  if (!loaded) {
    if (mode == "must") {
      dist::throw_agreed<ConfigError>(
          fmt::format("checkpoint.resume=must: expected a good checkpoint in {}, found none; give the run.folder of "
                      "the run to go on with, or start anew with resume=auto",
                      folder_.checkpoints().string()));
    }
    return;
  }
  require_same_run(*loaded);
  restore(*loaded);
  start_step_ = loaded->step();
  last_checkpoint_ = loaded->folder();
  last_saved_step_ = start_step_;
  log_info("checkpoint", "resumed from {} at step {} of {}", loaded->folder().string(), start_step_, num_steps());
}

}  // namespace espalier::train
