// SPDX-License-Identifier: Apache-2.0
// espalier export: a run's trained tensors as an adapter folder, ours or PEFT's, or merged into a model folder. No
// ranks are needed: checkpoints are stored by canonical name.
#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
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
#include "launch/session.h"
#include "peft/merge.h"
#include "train/run_folder.h"
#include "train/task.h"
#include "train/worker.h"

namespace fs = std::filesystem;

namespace espalier::launch {
namespace {

constexpr const char* kModelPath = "model.path";
constexpr const char* kDataPath = "data.path";
/// What a checkpoint puts before the names of the tensors of the best evaluation.
constexpr const char* kBest = "best/";

struct ExportRequest {
  std::string run;
  std::string output;
  std::string objective;
  std::string weights = "best";
  std::int64_t step = -1;
  std::string format = "espalier";
  MergedOptions merged;
  std::string model_path;  ///< in place of the run's model.path; empty: that
  std::string data_path;   ///< in place of the run's data.path; empty: that
};

/// The options of the run's objective to export, for one process without a layout.
ObjectiveOptions read_options(const ExportRequest& request) {
  const fs::path file = train::RunFolder(request.run).config_file();
  if (!fs::exists(file)) {
    throw ConfigError(
        fmt::format("--run: expected the folder of a run, found no {}; check the path, or train first", file.string()));
  }
  RunConfig run;
  OptionTable table;
  describe(table, run);
  table.read_text(read_file(file), file);
  const std::pair<const char*, const std::string&> moved[] = {{kModelPath, request.model_path},
                                                              {kDataPath, request.data_path}};
  for (const auto& [key, path] : moved) {
    if (!path.empty()) {
      table.set(key, path, OptionSource::kFlag, fmt::format("--{}", key));
    }
  }
  ObjectiveOptions options = find_objective(plan_objectives(table), request.objective);
  options.run.parallel = {};
  options.run.model.compute_type = "fp32";
  options.run.model.device = "cpu";
  return options;
}

/// The checkpoint in `root` that the request asks for.
std::unique_ptr<checkpoint::LoadedCheckpoint> load_checkpoint(const ExportRequest& request, const fs::path& root) {
  if (fs::exists(root)) {  // a store makes its folder, an export leaves the run alone
    dist::SoloCommunicator control;
    checkpoint::CheckpointStore store(root, control, /*keep=*/0);
    const auto steps = store.steps();
    const bool takes_newest = request.step < 0 || steps.empty();
    if (!takes_newest && std::find(steps.begin(), steps.end(), request.step) == steps.end()) {
      throw ConfigError(fmt::format("--step: expected a step that {} has ({}), found {}; choose one of these",
                                    root.string(), fmt::join(steps, ", "), request.step));
    }
    if (auto loaded = takes_newest ? store.load_latest() : store.load(request.step)) {
      return loaded;
    }
  }
  throw ConfigError(fmt::format("{}: expected a checkpoint, found none; train first, or check --run", root.string()));
}

/// Throws: ConfigError unless `path`, the run's option `option`, has the digest that the checkpoint's state keeps.
void require_unchanged(const checkpoint::LoadedCheckpoint& loaded, const char* digest_key, const std::string& digest,
                       const char* option, const std::string& path) {
  const auto stored = loaded.state().value(digest_key, std::string());
  if (stored != digest) {
    throw ConfigError(
        fmt::format("{}: expected the {} that the run was trained with, of digest {}, found {} in {}; give it as it "
                    "was with --{}",
                    loaded.folder().string(), option, stored, digest, path, option));
  }
}

/// What the checkpoint has of the objective whose tensors begin with `prefix`, by the names that they have alone.
std::map<std::string, at::Tensor> read_tensors(const ExportRequest& request, const checkpoint::LoadedCheckpoint& loaded,
                                               const std::string& prefix, const peft::Method& method) {
  const bool is_best = request.weights == "best";
  std::map<std::string, at::Tensor> tensors;
  const auto read = [&](const std::string& name, const at::Tensor& like, const std::string& kind) {
    loaded.read_into(kind + prefix + name, tensors.emplace(name, at::empty_like(like)).first->second);
  };
  for (const auto& trained : method.trained()) {
    read(trained.name, trained.value.detach(), is_best ? kBest : "trained/");
  }
  for (const auto& [name, kept] : method.kept_tensors()) {
    read(name, kept, is_best ? kBest : "kept/");
  }
  return tensors;
}

void export_run(const ExportRequest& request) {
  ObjectiveOptions options = read_options(request);
  const RunConfig& run = options.run;
  const std::string prefix = peft::objective_prefix(std::exchange(options.name, ""));
  const auto loaded = load_checkpoint(request, train::RunFolder(request.run).checkpoints());
  const auto names = loaded->names();
  if (request.weights == "best" && std::none_of(names.begin(), names.end(), [&](const std::string& name) {
        return name.starts_with(kBest + prefix);
      })) {
    throw ConfigError(
        fmt::format("{}: expected weights of a best evaluation, found none: there was no evaluation yet, or "
                    "train.restore_best=false; use --weights=last",
                    loaded->folder().string()));
  }
  const auto dataset = data::Dataset::open(run.data.path);
  require_unchanged(*loaded, "dataset_digest", dataset.info().content_digest, kDataPath, run.data.path);
  const auto objective = make_objective(options, dataset.info());
  dist::SoloCommunicator control;
  train::Worker worker({run.model, run.parallel, run.train.seed, {objective}}, {control});
  require_unchanged(*loaded, "base_model_digest", worker.model_digest(), kModelPath, run.model.path);
  auto tensors = read_tensors(request, *loaded, prefix, worker.method());
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

/// Throws: ConfigError for a flag of merged models with another format.
void refuse_merged_flags(const OptionTable& table, const std::string& format) {
  for (const char* key : {"shard_bytes", "type"}) {
    if (format != "merged" && table.find(key)->source() != OptionSource::kDefault) {
      throw ConfigError(
          fmt::format("--{}: expected it with --format=merged alone, found --format={}; leave it out", key, format));
    }
  }
}

}  // namespace

ExitCode run_export(const Arguments& arguments) {
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
          "with the training in its weights.");
  table.add("shard_bytes", request.merged.shard_bytes)
      .at_least(1)
      .unit("bytes")
      .help("Of a merged model: most bytes of tensors in one file.");
  table.add("type", request.merged.type)
      .choices({"stored", "fp32", "bf16", "fp16"})
      .help(
          "Of a merged model: type of its weights. stored: of each as in the backbone's folder, of a task head fp32.");
  table.add(kModelPath, request.model_path)
      .help("The run's backbone, where its folder has moved. \"\": as the run has it.");
  table.add(kDataPath, request.data_path).help("The run's dataset, where its file has moved. \"\": as the run has it.");
  if (wants_help(arguments)) {
    print_once(
        "usage: espalier export --run FOLDER --output FOLDER [--objective NAME] [--format espalier|peft|merged]\n"
        "       [--weights best|last] [--step N] [--model.path FOLDER] [--data.path FILE]\n"
        "       [--type stored|fp32|bf16|fp16] [--shard_bytes N]\n\n" +
        table.help());
    return ExitCode::kOk;
  }
  table.read_flags(arguments);
  table.check_required();
  refuse_merged_flags(table, request.format);
  if (launcher_rank() > 0) {
    return ExitCode::kOk;  // one process writes, however many were started
  }
  export_run(request);
  print_once(request.output + "\n");
  return ExitCode::kOk;
}

}  // namespace espalier::launch
