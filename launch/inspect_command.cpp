// SPDX-License-Identifier: Apache-2.0
// espalier inspect PATH: says what a model folder, dataset, run folder, checkpoint or adapter holds.
#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <numeric>
#include <set>
#include <utility>

#include "checkpoint/adapter.h"
#include "checkpoint/store.h"
#include "checkpoint/tensor_file.h"
#include "common/durable_file.h"
#include "common/error.h"
#include "data/dataset.h"
#include "dist/solo_communicator.h"
#include "launch/commands.h"
#include "launch/peft_config.h"
#include "launch/peft_folder.h"
#include "launch/run_config.h"
#include "model/slice.h"
#include "train/run_folder.h"

namespace espalier::launch {
namespace {

namespace fs = std::filesystem;

struct InspectRequest {
  peft::MethodConfig peft;
  train::ParallelConfig parallel;
  std::int64_t num_labels = 0;
};

std::string row(const std::string& name, const std::string& value) {
  return fmt::format("  {:<22} {}\n", name, value);
}

/// What the folder stores; a folder with config.json alone is described by its plan.
std::string describe_weights(const fs::path& folder) {
  if (!fs::exists(folder / "model.safetensors") && !fs::exists(folder / "model.safetensors.index.json")) {
    return row("stored parameters", "none: config.json alone");
  }
  const auto weights = model::open_model_folder(folder);
  std::int64_t stored = 0;
  for (const auto& name : weights->names()) {
    const auto shape = weights->shape(name);
    stored += std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
  }
  return row("stored parameters", fmt::format("{}", stored)) + row("digest", weights->digest());
}

std::string describe_model(const fs::path& folder, const InspectRequest& request) {
  const auto backbone = model::read_backbone(folder, {.num_labels = request.num_labels});
  const auto all = peft::count_trained({.method = "full"}, backbone);
  std::string text = fmt::format("{}: a {} model\n", folder.string(), backbone.family->model_type());
  text += row("blocks", fmt::format("{}", backbone.num_blocks())) + row("width", fmt::format("{}", backbone.width)) +
          row("vocabulary", fmt::format("{}", backbone.vocab_size)) +
          row("parameters", fmt::format("{}", all.method + all.head)) + describe_weights(folder);
  try {
    const auto count = peft::count_trained(request.peft, backbone);
    text += row("trained by " + request.peft.method, fmt::format("{} + head {}", count.method, count.head));
  } catch (const ConfigError& error) {
    text += row("trained by " + request.peft.method, fmt::format("nothing: {}", error.what()));
  }
  const auto stages =
      model::plan_stages(backbone, static_cast<int>(request.parallel.stages), request.parallel.first_blocks);
  for (std::size_t stage = 0; stage < stages.size(); ++stage) {
    text += row(fmt::format("stage {}", stage),
                fmt::format("{} to {}", backbone.chain[static_cast<std::size_t>(stages[stage].first)].name,
                            backbone.chain[static_cast<std::size_t>(stages[stage].end - 1)].name));
  }
  return text;
}

std::string describe_dataset(const fs::path& file) {
  const auto dataset = data::Dataset::open(file);
  const auto& info = dataset.info();
  std::string text = fmt::format("{}: a {} dataset\n", file.string(), data::to_string(info.task));
  text += row("labels", fmt::format("{} ({})", info.num_labels, fmt::join(info.label_names, ", "))) +
          row("vocabulary", fmt::format("{}", info.vocab_size)) + row("tokenizer digest", info.tokenizer_digest) +
          row("content digest", info.content_digest);
  for (const char* name : {"train", "validation", "test"}) {
    if (dataset.has_split(name)) {
      text += row(name, fmt::format("{} rows", dataset.split(name).num_rows()));
    }
  }
  return text;
}

std::string describe_checkpoint(const fs::path& folder) {
  const auto loaded = checkpoint::open_checkpoint(folder);
  return fmt::format("{}: a checkpoint\n{}{}{}", folder.string(), row("step", fmt::format("{}", loaded->step())),
                     row("tensors", fmt::format("{}", loaded->names().size())),
                     "  state " + loaded->state().dump(2) + "\n");
}

std::string describe_adapter_folder(const fs::path& folder) {
  const auto adapter = checkpoint::read_adapter(folder);
  std::int64_t parameters = 0;
  for (const auto& [name, tensor] : adapter.tensors) {
    parameters += tensor.numel();
  }
  return fmt::format("{}: an adapter\n{}{}", folder.string(), row("parameters", fmt::format("{}", parameters)),
                     adapter.description.dump(2) + "\n");
}

/// As its files say it: whether Espalier can read the folder depends on the model, too.
std::string describe_peft(const fs::path& folder) {
  const auto config = read_peft_config(folder);
  std::string text = fmt::format("{}: an adapter of PEFT\n", folder.string());
  const std::pair<const char*, const char*> rows[] = {{"method", "peft_type"},
                                                      {"task", "task_type"},
                                                      {"rank", "r"},
                                                      {"alpha", "lora_alpha"},
                                                      {"rank pattern", "rank_pattern"},
                                                      {"alpha pattern", "alpha_pattern"},
                                                      {"targets", "target_modules"},
                                                      {"saved modules", "modules_to_save"},
                                                      {"backbone", "base_model_name_or_path"}};
  for (const auto& [name, key] : rows) {
    if (config.contains(key) && !config[key].empty()) {  // null is empty
      text += row(name, config[key].is_string() ? config[key].get<std::string>() : config[key].dump());
    }
  }
  const auto source = open_peft_tensors(folder);
  const auto names = source->names();
  std::uint64_t bytes = 0;
  std::set<std::string> types;
  for (const std::string& name : names) {
    const at::Tensor tensor = source->get(name);
    bytes += tensor.nbytes();
    types.insert(checkpoint::dtype_text(tensor.scalar_type(), fmt::format("{}: tensor {}", folder.string(), name)));
  }
  return text + row("tensors", fmt::format("{}", names.size())) + row("bytes", fmt::format("{}", bytes)) +
         row("type", fmt::format("{}", fmt::join(types, ", ")));
}

std::string describe_run(const train::RunFolder& folder) {
  std::string text = folder.path().string() + ": a run\n";
  if (fs::exists(folder.checkpoints())) {  // a store makes its folder
    dist::SoloCommunicator control;
    const checkpoint::CheckpointStore store(folder.checkpoints(), control, /*keep=*/0);
    for (const std::int64_t step : store.steps()) {
      text += row("checkpoint", fmt::format("of step {}", step));
    }
  }
  return text + (fs::exists(folder.summary_file()) ? read_file(folder.summary_file())
                                                   : row("summary", "none yet: the run has not ended"));
}

std::string describe_path(const fs::path& path, const InspectRequest& request) {
  if (!fs::exists(path)) {
    throw ConfigError(fmt::format("{}: expected a file or folder, found nothing", path.string()));
  }
  if (!fs::is_directory(path)) {
    return describe_dataset(path);
  }
  if (fs::exists(path / "manifest.json")) {
    return describe_checkpoint(path);
  }
  if (fs::exists(path / "adapter.json")) {
    return describe_adapter_folder(path);
  }
  if (is_peft_folder(path)) {
    return describe_peft(path);
  }
  if (fs::exists(path / "config.json")) {
    return describe_model(path, request);
  }
  const train::RunFolder folder(path);
  if (fs::exists(folder.config_file())) {
    return describe_run(folder);
  }
  throw ConfigError(fmt::format(
      "{}: expected a model folder (config.json), a run (config.ini), a checkpoint (manifest.json), an adapter "
      "(adapter.json, or adapter_config.json of PEFT) or a dataset file, found none of them; check the path",
      path.string()));
}

}  // namespace

ExitCode run_inspect(const Arguments& arguments) {
  InspectRequest request;
  OptionTable table;
  peft::describe(table, request.peft);
  train::describe(table, request.parallel);
  table.add("num_labels", request.num_labels)
      .at_least(0)
      .help("Labels of the head when counting a model. 0: as the folder says.");
  const std::string usage = "usage: espalier inspect PATH [--section.key=value ...]\n";
  if (wants_help(arguments)) {
    print_once(usage + "\n" + table.help());
    return ExitCode::kOk;
  }
  if (arguments.empty() || arguments.front().starts_with("--")) {
    throw ConfigError(fmt::format("inspect: expected PATH as the first word, found {}\n{}",
                                  arguments.empty() ? "nothing" : arguments.front(), usage));
  }
  table.read_flags(Arguments(arguments.begin() + 1, arguments.end()));
  print_once(describe_path(arguments.front(), request));
  return ExitCode::kOk;
}

}  // namespace espalier::launch
