// SPDX-License-Identifier: Apache-2.0
// espalier train
#include <spdlog/fmt/fmt.h>

#include <optional>
#include <utility>
#include <vector>

#include "checkpoint/adapter.h"
#include "common/error.h"
#include "common/log.h"
#include "dist/agree.h"
#include "launch/adapter_files.h"
#include "launch/array_files.h"
#include "launch/commands.h"
#include "launch/objectives.h"
#include "launch/run_config.h"
#include "launch/session.h"
#include "train/device.h"
#include "train/gather.h"
#include "train/task.h"
#include "train/trainer.h"

namespace espalier::launch {
namespace {

std::string mebibytes(const nlohmann::json& bytes) {
  std::vector<std::string> texts;
  for (const auto& value : bytes) {
    texts.push_back(fmt::format("{:.1f}", value.get<double>() / (1 << 20)));
  }
  return fmt::format("{} MiB", fmt::join(texts, ", "));
}

/// The final table, for people; summary.json holds the same for programs.
std::string summary_text(const nlohmann::json& record) {
  const auto row = [](const std::string& name, const std::string& value) {
    return fmt::format("  {:<26} {}\n", name, value);
  };
  std::string text =
      fmt::format("\n{} on {} stage(s) x {} replica(s), {} thread(s) per rank\n", record["method"].get<std::string>(),
                  record["stages"].get<int>(), record["replicas"].get<int>(), record["threads"].get<int>());
  text += row("steps", fmt::format("{}", record["steps"].get<std::int64_t>()));
  text += row("trained parameters", fmt::format("{}", record["trained_parameters"].get<std::int64_t>()));
  text += row("frozen parameters", fmt::format("{}", record["frozen_parameters"].get<std::int64_t>()));
  text += row("peak bytes by rank", mebibytes(record["peak_allocated_bytes"]));
  text += row("reduced bytes per step",
              fmt::format("{}", fmt::join(record["reduced_bytes_per_step"].get<std::vector<std::int64_t>>(), ", ")));
  text += row("throughput", fmt::format("{:.1f} samples/s, {:.0f} tokens/s", record["samples_per_second"].get<double>(),
                                        record["tokens_per_second"].get<double>()));
  if (record.contains("inversion_error")) {
    text += row("inversion error", fmt::format("{:.1e}", record["inversion_error"].get<double>()));
  }
  if (record.contains("resampling_seconds")) {
    text += row("drawing subspaces",
                fmt::format("{:.1f} s, {:.1f} % of training", record["resampling_seconds"].get<double>(),
                            100 * record["resampling_share"].get<double>()));
  }
  const auto add_results = [&](const nlohmann::json& of) {
    if (of.contains("best")) {
      const auto& best = of["best"];
      text += row("best validation " + best["metric"].get<std::string>(),
                  fmt::format("{:.4f} (step {})", best["value"].get<double>(), best["step"].get<std::int64_t>()));
    }
    if (of.contains("ended")) {
      text += row("ended after step", fmt::format("{}: {}", of["ended"]["step"].get<std::int64_t>(),
                                                  of["ended"]["reason"].get<std::string>()));
    }
    if (of.contains("test")) {
      for (const auto& [name, value] : of["test"].items()) {
        text += row("test " + name, fmt::format("{:.4f}", value.get<double>()));
      }
    }
  };
  add_results(record);
  for (const auto& objective : record.value("objectives", nlohmann::json::array())) {
    text += fmt::format("\n{}\n", objective["name"].get<std::string>());
    text += row("trained parameters", fmt::format("{}", objective["trained_parameters"].get<std::int64_t>()));
    add_results(objective);
  }
  return text;
}

/// Collective: every rank.
void write_run_adapters(const train::RunFolder& folder, const std::vector<ObjectiveOptions>& options,
                        train::Worker& worker) {
  for (std::size_t k = 0; k < options.size(); ++k) {
    auto tensors = train::gather_stages(worker.mesh(), worker.result(k));
    const auto& objective = worker.objective(k);
    auto description = describe_adapter(options[k], objective, worker.model_digest(), objective.config.data);
    dist::together(
        worker.control(), "writing the adapter",
        [&] {
          if (worker.control().rank() == 0) {
            checkpoint::write_adapter(folder.adapter(options[k].name), {std::move(description), std::move(tensors)});
          }
        },
        ExitCode::kStorage);
  }
}

/// What the user asked for: `run` and `table` are two views of the same values.
struct TrainRequest {
  RunConfig run;
  OptionTable table;
  std::optional<checkpoint::Adapter> initial;  ///< of train.initial_adapter
  std::vector<ObjectiveOptions> objectives;
};

/// Throws: ConfigError.
void read_request(TrainRequest& request, const Arguments& arguments, const TextReader& read_text) {
  auto& [run, table, initial, objectives] = request;
  describe(table, run);
  read_arguments(table, table, arguments, read_text);
  if (!run.train.initial_adapter.empty()) {
    initial = read_any_adapter(run.train.initial_adapter, run.model.path);
    table.read_text(initial->description.value("options", std::string()), run.train.initial_adapter);
    read_arguments(table, table, arguments, read_text);  // file and flags go before the adapter's options
  }
  objectives = plan_objectives(table);
  if (initial && !objectives.front().name.empty()) {
    throw ConfigError(
        fmt::format("train.initial_adapter: expected a run of one objective, found objectives {}; start each from an "
                    "adapter in a run of its own",
                    names_of(objectives)));
  }
}

void load_initial_adapter(train::Worker& worker, const checkpoint::Adapter& adapter, const std::string& path) {
  if (worker.objective().part.importance_start != nullptr) {
    throw ConfigError(
        "train.initial_adapter: expected a method that does not draw its start from the data, found "
        "peft.lst.side_initial=fisher; take magnitude");
  }
  load_adapter(worker, adapter, path);
}

ExitCode train_in_session(Session& session, const Arguments& arguments) {
  TrainRequest request;
  dist::together(session.control(), "reading the configuration", [&] {
    read_request(request, arguments, [&](const std::string& path) { return session.read_text(path); });
    request.table.check_required();
  });
  dist::require_equal(session.control(), request.table.canonical_text(), "configuration");
  const RunConfig& run = request.run;
  const int threads = session.set_threads(static_cast<int>(run.parallel.threads));
  const data::Dataset dataset = open_dataset(session.control(), run.data);
  std::vector<train::ObjectiveConfig> objectives;
  objectives.reserve(request.objectives.size());
  for (const auto& options : request.objectives) {
    objectives.push_back(make_objective(options, dataset.info()));
  }
  train::Worker worker({run.model, run.parallel, run.train.seed, std::move(objectives), run.train.batched},
                       session.ranks(run.model.device));
  // An initial adapter may have learned something else: from one task to the next.
  require_fit(worker.backbone(), worker.objective().config.data, /*adapter=*/nlohmann::json::object());
  if (request.initial) {
    load_initial_adapter(worker, *request.initial, run.train.initial_adapter);
  }
  const auto& place = worker.place();
  log_info("espalier", "{} stage(s) x {} replica(s), {} thread(s) per rank, {} rows to train on", place.num_stages,
           place.num_replicas, threads, dataset.split("train").num_rows());

  const train::TrainerConfig config{run.data,
                                    run.gradient_sync,
                                    run.parallel,
                                    run.train,
                                    run.checkpoint,
                                    run.run.folder,
                                    request.table.print_config(),
                                    numeric_options(request.table),
                                    threads,
                                    default_numeric_options()};
  train::Trainer trainer(config, worker, dataset, session.ledger(), session.stop_requested());
  const auto summary = trainer.run();
  if (summary.is_stopped) {
    log_info("espalier", "stopped on request after step {}; the same command goes on from there", summary.steps);
    return ExitCode::kStopped;
  }
  write_run_adapters(train::RunFolder(run.run.folder), request.objectives, worker);
  print_once(summary_text(summary.record));
  return ExitCode::kOk;
}

}  // namespace

ExitCode run_train(const Arguments& arguments) {
  if (wants_help(arguments)) {
    RunConfig run;
    OptionTable table;
    describe(table, run);
    print_once("usage: espalier train --config FILE [--section.key=value ...] [--print-config]\n\n" + table.help());
    return ExitCode::kOk;
  }
  Arguments rest = arguments;
  if (std::erase(rest, "--print-config") > 0) {
    TrainRequest request;
    read_request(request, rest, read_named_file);
    print_once(request.table.print_config());
    return ExitCode::kOk;
  }
  return run_in_session([&](Session& session) { return train_in_session(session, rest); });
}

}  // namespace espalier::launch
