// SPDX-License-Identifier: Apache-2.0
// espalier export: a run's trained tensors as an adapter folder, ours or PEFT's, or merged into a model folder. No
// ranks are needed: checkpoints are stored by canonical name.
#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <utility>

#include "checkpoint/adapter.h"
#include "checkpoint/store.h"
#include "common/durable_file.h"
#include "common/error.h"
#include "data/dataset.h"
#include "dist/solo_communicator.h"
#include "launch/adapter_files.h"
#include "launch/commands.h"
#include "launch/merged_folder.h"
#include "launch/objectives.h"
#include "launch/peft_folder.h"
#include "launch/run_config.h"
#include "peft/merge.h"
#include "train/run_folder.h"
#include "train/task.h"
#include "train/worker.h"

namespace espalier::launch {
namespace {

struct ExportRequest {
  std::string run;
  std::string output;
  std::string objective;
  std::string weights = "best";
  std::int64_t step = -1;
  std::string format = "espalier";
  MergedOptions merged;
};

/// Of a checkpoint's state; -1: there was no evaluation.
std::int64_t best_step(const nlohmann::json& state, const std::string& objective) {
  for (const auto& each : state.at("objectives")) {
    if (each.value("name", std::string()) == objective) {
      return each.value("best_step", std::int64_t{-1});
    }
  }
  return -1;
}

void export_run(const ExportRequest& request) {
  const train::RunFolder folder(request.run);
  RunConfig whole;
  OptionTable table;
  describe(table, whole);
  table.read_text(read_file(folder.config_file()), folder.config_file());
  ObjectiveOptions options = find_objective(plan_objectives(table), request.objective);
  const std::string prefix = peft::objective_prefix(std::exchange(options.name, ""));
  RunConfig& run = options.run;

  dist::SoloCommunicator control;
  checkpoint::CheckpointStore store(folder.checkpoints(), control, /*keep=*/0);
  const auto loaded = request.step >= 0 ? store.load(request.step) : store.load_latest();
  if (!loaded) {
    throw ConfigError(fmt::format("{}: expected a checkpoint, found none", folder.checkpoints().string()));
  }
  if (request.weights == "best" && best_step(loaded->state(), request.objective) < 0) {
    throw ConfigError(fmt::format("{}: expected weights of a best evaluation, found none; use --weights=last",
                                  loaded->folder().string()));
  }
  const auto dataset = data::Dataset::open(run.data.path);
  const auto objective = make_objective(options, dataset.info());
  run.parallel = {};
  run.model.compute_type = "fp32";
  run.model.device = "cpu";
  train::Worker worker({run.model, run.parallel, run.train.seed, {objective}}, {control});
  const bool is_best = request.weights == "best";
  std::map<std::string, at::Tensor> tensors;
  const auto read = [&](const std::string& name, const at::Tensor& like, const std::string& kind) {
    loaded->read_into(kind + prefix + name, tensors.emplace(name, at::empty_like(like)).first->second);
  };
  for (const auto& trained : worker.method().trained()) {
    read(trained.name, trained.value.detach(), is_best ? "best/" : "trained/");
  }
  for (const auto& [name, kept] : worker.method().kept_tensors()) {
    read(name, kept, is_best ? "best/" : "kept/");
  }
  if (request.format == "peft") {
    write_peft_folder(request.output, run.peft, worker.backbone(), run.model.pooling, worker.weights(), tensors);
  } else if (request.format == "merged") {
    worker.load_result(tensors);
    write_merged_folder(request.output, worker.backbone(), run.model.pooling, worker.weights(),
                        peft::merged_weights(worker.method(), worker.slice()), objective.data, request.merged);
  } else {
    checkpoint::write_adapter(
        request.output,
        {describe_adapter(options, worker.objective(), worker.model_digest(), objective.data), std::move(tensors)});
  }
}

}  // namespace

int run_export(const Arguments& arguments) {
  ExportRequest request;
  OptionTable table;
  table.add("run", request.run).required().help("Run folder to export from.");
  table.add("output", request.output)
      .required()
      .help("Folder to write; for the formats of other programs it must be new.");
  table.add("objective", request.objective).help("Of a run with several objectives, the one to export.");
  table.add("weights", request.weights)
      .choices({"best", "last"})
      .help("Tensors of the best evaluation, or of the checkpoint's step.");
  table.add("step", request.step).at_least(-1).unit("steps").help("Checkpoint to take. -1: the newest good one.");
  table.add("format", request.format)
      .choices({"espalier", "peft", "merged"})
      .help(
          "espalier: adapter folder of any method. peft: LoRA as Hugging Face PEFT stores it. merged: model folder "
          "with "
          "the training in its weights.");
  table.add("shard_bytes", request.merged.shard_bytes)
      .at_least(1)
      .unit("bytes")
      .help("Of a merged model: most bytes of tensors in one file.");
  table.add("type", request.merged.type)
      .choices({"stored", "fp32", "bf16", "fp16"})
      .help(
          "Of a merged model: type of its weights. stored: of each as in the backbone's folder, of a task head fp32.");
  if (wants_help(arguments)) {
    print_once(
        "usage: espalier export --run FOLDER --output FOLDER [--objective NAME] [--format espalier|peft|merged]\n"
        "       [--weights best|last] [--step N]\n"
        "       [--type stored|fp32|bf16|fp16] [--shard_bytes N]\n\n" +
        table.help());
    return static_cast<int>(ExitCode::kOk);
  }
  table.read_flags(arguments);
  table.check_required();
  export_run(request);
  print_once(request.output + "\n");
  return static_cast<int>(ExitCode::kOk);
}

}  // namespace espalier::launch
