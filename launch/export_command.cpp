// SPDX-License-Identifier: Apache-2.0
// espalier export: a run's trained tensors as an adapter folder. No ranks are needed: checkpoints are stored by
// canonical name.
#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include "checkpoint/adapter.h"
#include "checkpoint/store.h"
#include "common/durable_file.h"
#include "common/error.h"
#include "data/dataset.h"
#include "dist/solo_communicator.h"
#include "launch/adapter_files.h"
#include "launch/commands.h"
#include "launch/run_config.h"
#include "model/weights.h"
#include "train/run_folder.h"
#include "train/task.h"
#include "train/worker.h"

namespace espalier::launch {
namespace {

struct ExportRequest {
  std::string run;
  std::string output;
  std::string weights = "best";
  std::int64_t step = -1;
};

void export_adapter(const ExportRequest& request) {
  const train::RunFolder folder(request.run);
  RunConfig run;
  OptionTable table;
  describe(table, run);
  table.read_text(read_file(folder.config_file()), folder.config_file());

  dist::SoloCommunicator control;
  checkpoint::CheckpointStore store(folder.checkpoints(), control, /*keep=*/0);
  const auto loaded = request.step >= 0 ? store.load(request.step) : store.load_latest();
  if (!loaded) {
    throw ConfigError(fmt::format("{}: expected a checkpoint, found none", folder.checkpoints().string()));
  }
  if (request.weights == "best" && loaded->state().value("best_step", std::int64_t{-1}) < 0) {
    throw ConfigError(fmt::format("{}: expected weights of a best evaluation, found none; use --weights=last",
                                  loaded->folder().string()));
  }
  const auto dataset = data::Dataset::open(run.data.path);
  const auto backbone = model::read_backbone(run.model.path, train::head_request(dataset.info(), run.model.pooling));
  const auto source = train::open_weights(run.model, backbone);
  model::StageSlice slice(backbone, {0, backbone.num_layers()}, *source, {});
  const auto method = peft::make_method(run.peft, slice, *source, run.train.seed);
  const bool is_best = request.weights == "best";
  std::map<std::string, at::Tensor> tensors;
  const auto read = [&](const std::string& name, const at::Tensor& like, const std::string& prefix) {
    loaded->read_into(prefix + name, tensors.emplace(name, at::empty_like(like)).first->second);
  };
  for (const auto& trained : method->trained()) {
    read(trained.name, trained.value.detach(), is_best ? "best/" : "trained/");
  }
  for (const auto& [name, kept] : method->kept_tensors()) {
    read(name, kept, is_best ? "best/" : "kept/");
  }
  checkpoint::write_adapter(request.output,
                            {describe_adapter(table, *method, source->digest(), dataset.info()), std::move(tensors)});
}

}  // namespace

int run_export(const Arguments& arguments) {
  ExportRequest request;
  OptionTable table;
  table.add("run", request.run).required().help("Run folder to export from.");
  table.add("output", request.output).required().help("Adapter folder to write.");
  table.add("weights", request.weights)
      .choices({"best", "last"})
      .help("Tensors of the best evaluation, or of the checkpoint's step.");
  table.add("step", request.step).at_least(-1).unit("steps").help("Checkpoint to take. -1: the newest good one.");
  if (wants_help(arguments)) {
    print_once("usage: espalier export --run FOLDER --output FOLDER [--weights best|last] [--step N]\n\n" +
               table.help());
    return static_cast<int>(ExitCode::kOk);
  }
  table.read_flags(arguments);
  table.check_required();
  export_adapter(request);
  print_once(request.output + "\n");
  return static_cast<int>(ExitCode::kOk);
}

}  // namespace espalier::launch
