// SPDX-License-Identifier: Apache-2.0
#include "launch/adapter_files.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <optional>

#include "common/error.h"
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
  if (!objective.part.facts.is_null()) {
    description["facts"] = objective.part.facts;
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

namespace {

/// Throws: ConfigError where class i of the dataset is not what output i of the head stands for.
void require_same_labels(const model::Backbone& backbone, const data::DatasetInfo& dataset,
                         const nlohmann::json& adapter) {
  const std::string path = dataset.path.string();
  const std::string task(data::to_string(dataset.task));
  if (const auto learned = adapter.value("task", task); learned != task) {
    throw ConfigError(
        fmt::format("{}: expected a dataset of task {}, which the adapter learned, found {}", path, learned, task));
  }
  if (dataset.num_labels != backbone.head().num_labels) {
    throw ConfigError(fmt::format("{}: expected a dataset of {} labels, as many as the head of {} predicts, found {}",
                                  path, backbone.head().num_labels, backbone.folder.string(), dataset.num_labels));
  }
  const auto names = adapter.value("label_names", dataset.label_names);
  if (names != dataset.label_names) {
    throw ConfigError(
        fmt::format("{}: expected the labels {}, in the order in which the adapter learned them, found {}; prepare the "
                    "dataset with --label-names",
                    path, fmt::join(names, ", "), fmt::join(dataset.label_names, ", ")));
  }
}

}  // namespace

void require_fit(const model::Backbone& backbone, const data::DatasetInfo& dataset, const nlohmann::json& adapter) {
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
  if (!backbone.head().is_language_model) {
    require_same_labels(backbone, dataset, adapter);
  }
}

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
  dist::together(worker.control(), "loading the adapter", [&] { worker.load_result(adapter.tensors); });
  // Each stage took its own; one that none took would be lost in silence.
  const auto own = worker.result();
  const at::Tensor uses = at::zeros({static_cast<std::int64_t>(adapter.tensors.size())}, at::kLong);
  std::int64_t place = 0;
  for (const auto& [name, tensor] : adapter.tensors) uses[place++] = own.contains(name) ? 1 : 0;
  worker.control().all_reduce(uses).wait();
  place = 0;
  for (const auto& [name, tensor] : adapter.tensors) {
    if (uses[place++].item<std::int64_t>() == 0) {
      throw ConfigError(fmt::format(
          "{}: expected tensors that {} trains with the options given, found '{}' beside them; the adapter was made "
          "with other peft options",
          folder, worker.method().name(), name));
    }
  }
}

namespace {

/// The folder of the adapter that the request names, of a run the one that it ended with. Empty: none.
std::string adapter_folder_of(const WeightsRequest& request, const OptionTable& run_options) {
  if (!request.adapter.empty() || request.run.empty()) {
    if (!request.objective.empty()) {
      throw ConfigError(fmt::format("--objective: expected it with the --run that it is an objective of, found {} {}",
                                    request.objective, request.adapter.empty() ? "without --run" : "with --adapter"));
    }
    return request.adapter;
  }
  const train::RunFolder run(request.run);
  const auto folder = run.adapter(find_objective(plan_objectives(run_options), request.objective).name);
  if (!std::filesystem::exists(folder)) {
    throw ConfigError(
        fmt::format("--run: expected a run that has ended, found no {}; let it end, or take its newest checkpoint with "
                    "espalier export and name that folder with --adapter",
                    folder.string()));
  }
  return folder.string();
}

}  // namespace

LoadedWorker make_worker_with_weights(Session& session, const Arguments& arguments, OptionTable& table, RunConfig& run,
                                      WeightsRequest& request, const std::function<void()>& check_flags) {
  // Files may hold every option of a run, of which this command reads some: two tables of the same variables.
  OptionTable all;
  describe(all, run);
  std::optional<checkpoint::Adapter> adapter;
  std::string adapter_folder;
  dist::together(session.control(), "reading the configuration", [&] {
    const auto read_text = [&](const std::string& path) { return session.read_text(path); };
    const auto read = [&] { read_arguments(all, table, arguments, read_text); };
    read();
    if (check_flags) {
      check_flags();
    }
    if (!request.run.empty()) {
      const auto file = train::RunFolder(request.run).config_file();
      all.read_text(session.read_text(file), file);
      run.parallel = {};  // the layout belongs to a job, not to the weights
      read();             // file and flags go before the run's options
    }
    adapter_folder = adapter_folder_of(request, all);
    if (!adapter_folder.empty()) {
      adapter = read_any_adapter(adapter_folder, run.model.path);
      all.read_text(adapter->description.value("options", std::string()), adapter_folder + "/adapter.json");
      read();
    } else {
      run.peft.method = "probe";  // the bare backbone: nothing is added, only the folder's own head
    }
    if (run.model.path.empty()) {
      throw ConfigError("model.path: expected a Hugging Face model folder, found nothing; give --model.path or --run");
    }
  });
  dist::require_equal(session.control(), all.canonical_text() + table.canonical_text(), "configuration");
  session.set_threads(static_cast<int>(run.parallel.threads));
  LoadedWorker loaded{nullptr, adapter ? adapter->description : nlohmann::json::object()};
  const model::HeadRequest head{.num_labels = loaded.adapter.value("num_labels", std::int64_t{0}),
                                .pooling = run.model.pooling,
                                .kind = loaded.adapter.value("head", std::string("auto"))};
  loaded.worker = std::make_unique<train::Worker>(
      train::WorkerConfig{run.model, run.parallel, run.train.seed, {{.peft = run.peft, .head = head}}},
      session.ranks(run.model.device));
  if (adapter) {
    load_adapter(*loaded.worker, *adapter, adapter_folder);
  }
  return loaded;
}

}  // namespace espalier::launch
