// SPDX-License-Identifier: Apache-2.0
#include "launch/adapter_files.h"

#include <spdlog/fmt/fmt.h>

#include "common/error.h"
#include "common/log.h"
#include "dist/agree.h"
#include "launch/peft_folder.h"
#include "train/run_folder.h"
#include "train/task.h"

namespace espalier::launch {

nlohmann::json describe_adapter(const ObjectiveOptions& options, const train::WorkerObjective& objective,
                                const std::string& base_model_digest, const data::DatasetInfo& dataset) {
  nlohmann::json description = {{"method", options.run.peft.method},
                                {"options", options.adapter_options},
                                {"base_model_digest", base_model_digest},
                                {"task", data::to_string(dataset.task)},
                                {"num_labels", dataset.num_labels},
                                {"head", train::predicts_tokens(dataset.task) ? "language_model" : "pooled"},
                                {"label_names", dataset.label_names}};
  for (const auto& [key, json_text] : objective.part.facts) {
    description["facts"][key] = nlohmann::json::parse(json_text);
  }
  return description;
}

void describe(OptionTable& table, WeightsRequest& request) {
  table.add("run", request.run).help("Run folder whose options and adapter are used.");
  table.add("adapter", request.adapter)
      .help(
          "Adapter folder, Espalier's or PEFT's LoRA; default: the run's. Without run and adapter: the bare backbone.");
  table.add("objective", request.objective).help("Of a run with several objectives, the one whose adapter is used.");
}

void require_fit(const model::Backbone& backbone, const data::DatasetInfo& dataset) {
  if (dataset.vocab_size > backbone.vocab_size) {
    throw ConfigError(fmt::format(
        "{}: expected token ids below the {} of the backbone's vocabulary, found a tokenizer of {}; prepare "
        "the data with the tokenizer of {}",
        dataset.path.string(), backbone.vocab_size, dataset.vocab_size, backbone.folder.string()));
  }
  if (train::predicts_tokens(dataset.task) != backbone.head().is_language_model) {
    throw ConfigError(fmt::format("{}: expected a dataset for a {}, found task {}", dataset.path.string(),
                                  backbone.head().is_language_model ? "language model head (seq2seq, causal_lm, "
                                                                      "multiple_choice)"
                                                                    : "pooled head (classification, regression)",
                                  data::to_string(dataset.task)));
  }
}

namespace {

/// The text after `flag` ("--flag value" or "--flag=value"), or nothing.
std::string flag_value(const Arguments& arguments, const std::string& flag) {
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == flag && i + 1 < arguments.size()) {
      return arguments[i + 1];
    }
    if (arguments[i].starts_with(flag + "=")) {
      return arguments[i].substr(flag.size() + 1);
    }
  }
  return {};
}

}  // namespace

checkpoint::Adapter read_any_adapter(const std::filesystem::path& folder, const std::filesystem::path& model_folder) {
  return is_peft_folder(folder) ? read_peft_folder(folder, model_folder) : checkpoint::read_adapter(folder);
}

void load_adapter(train::Worker& worker, const checkpoint::Adapter& adapter, const std::string& folder) {
  const auto made_for = adapter.description.value("base_model_digest", std::string());
  if (!made_for.empty() && made_for != worker.model_digest()) {
    throw ConfigError(
        fmt::format("{}: expected a backbone with digest {}, found {} in {}; give the model folder the adapter was "
                    "trained on",
                    folder, made_for, worker.model_digest(), worker.backbone().folder.string()));
  }
  worker.load_result(adapter.tensors);
}

std::unique_ptr<train::Worker> make_worker_with_weights(Session& session, const Arguments& arguments,
                                                        OptionTable& table, RunConfig& run, WeightsRequest& request) {
  // Run and adapter decide which files come before the flags, so they are looked for first.
  request.run = flag_value(arguments, "--run");
  request.adapter = flag_value(arguments, "--adapter");
  request.objective = flag_value(arguments, "--objective");
  const train::RunFolder folder(request.run);
  std::string adapter_folder = !request.adapter.empty() ? request.adapter
                               : request.run.empty()    ? ""
                                                        : folder.adapter().string();
  bool takes_adapter_options = request.run.empty();
  if (!request.run.empty()) {
    table.read_text(session.read_text(folder.config_file()), folder.config_file());
    if (!table.scoped_values().empty() && request.adapter.empty()) {
      adapter_folder = folder.adapter(find_objective(plan_objectives(table), request.objective).name).string();
      takes_adapter_options = true;
    }
    // The layout belongs to a job, not to the weights: this one has other ranks.
    run.parallel = {};
  }
  std::optional<checkpoint::Adapter> adapter;
  model::HeadRequest head;
  if (!adapter_folder.empty()) {
    const auto read_text = [&](const std::string& path) { return session.read_text(path); };
    if (is_peft_folder(adapter_folder)) {
      read_arguments(table, arguments, read_text);  // PEFT's names need the model to be understood
    }
    adapter = read_any_adapter(adapter_folder, run.model.path);
    head.num_labels = adapter->description.value("num_labels", std::int64_t{0});
    head.kind = adapter->description.value("head", std::string("auto"));
    if (takes_adapter_options || is_peft_folder(adapter_folder)) {
      table.read_text(adapter->description.value("options", std::string()), adapter_folder + "/adapter.json");
    }
  } else {
    run.peft.method = "probe";  // the bare backbone: nothing is added, only the folder's own head
  }
  read_arguments(table, arguments, [&](const std::string& path) { return session.read_text(path); });
  if (run.model.path.empty()) {
    throw ConfigError("model.path: expected a Hugging Face model folder, found nothing; give --model.path or --run");
  }
  head.pooling = run.model.pooling;
  dist::require_equal(session.control(), table.canonical_text(), "configuration");
  session.set_threads(static_cast<int>(run.parallel.threads));
  auto worker = std::make_unique<train::Worker>(
      train::WorkerConfig{run.model, run.parallel, run.train.seed, {{.peft = run.peft, .head = head}}},
      session.ranks(run.model.device));
  if (adapter) {
    load_adapter(*worker, *adapter, adapter_folder);
  }
  return worker;
}

}  // namespace espalier::launch
