// SPDX-License-Identifier: Apache-2.0
// espalier generate: texts for the prompts of a split, or for plain padded arrays (docs/generate.md).
#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "common/durable_file.h"
#include "common/error.h"
#include "common/log.h"
#include "data/sampler.h"
#include "dist/agree.h"
#include "launch/adapter_files.h"
#include "launch/array_files.h"
#include "launch/commands.h"
#include "model/input_names.h"
#include "train/generation.h"

namespace espalier::launch {
namespace {

struct GenerateRequest {
  std::string split = "test";
  std::string inputs;
  std::string output;
  std::int64_t batch_size = 16;
  train::SearchConfig search;
};

/// Row -> generated tokens.
using Texts = std::map<std::int64_t, train::TokenIds>;

/// What a search reads of `arrays`: ids and mask, and images where there are some.
model::NamedTensors prompts_from(const model::NamedTensors& arrays, const at::Tensor& mask) {
  model::NamedTensors prompts{{"input_ids", arrays.at("input_ids")}, {"attention_mask", mask}};
  for (const auto* name : model::kVisualInputs) {
    if (arrays.contains(name)) prompts.emplace(name, arrays.at(name));
  }
  return prompts;
}

/// The prompts of `rows`: what generation goes on from, without the answer behind it.
model::NamedTensors prompts_of(const data::Split& split, const std::vector<std::int64_t>& rows,
                               const data::DataConfig& config) {
  auto batch = split.collate(rows, config.row_limit(), config.pad_multiple, /*fixed_length=*/0);
  auto& mask = batch.at("attention_mask");
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto length = std::min(split.prompt_length(rows[i]), mask.size(1));
    mask[static_cast<std::int64_t>(i)].slice(0, length).zero_();
  }
  return prompts_from(batch, mask);
}

/// Collective: every rank.
Texts generate_split(const LoadedWorker& loaded, const RunConfig& run, const GenerateRequest& request) {
  train::Worker& worker = *loaded.worker;
  const auto [dataset, info] = open_fitting_dataset(loaded, run.data);
  if (info.task == data::TaskKind::kMultipleChoice) {
    throw ConfigError(
        fmt::format("{}: expected a dataset of seq2seq or causal_lm, found multiple_choice: its answers are ranked, "
                    "not generated; use evaluate",
                    run.data.path));
  }
  const auto& split = dataset.split(request.split);
  const auto batches = data::sequential_batches(split.num_rows(), request.batch_size);
  const auto& place = worker.place();
  Texts texts;
  for (auto i = static_cast<std::size_t>(place.replica_index); i < batches.size();
       i += static_cast<std::size_t>(place.num_replicas)) {
    const auto generated = train::generate(worker, request.search, prompts_of(split, batches[i], run.data));
    for (std::size_t row = 0; row < generated.size(); ++row) {
      texts[batches[i][row]] = generated[row];
    }
    log_info("generate", "batch {} of {}", i + 1, batches.size());
  }
  return texts;
}

/// Collective: every rank.
Texts generate_arrays(train::Worker& worker, const GenerateRequest& request) {
  const auto arrays = read_arrays(request.inputs, worker.backbone());
  check_arrays(arrays, request.inputs, worker, /*reads_ids=*/true);
  const auto ids = arrays.at("input_ids");
  const auto mask = arrays.contains("attention_mask") ? arrays.at("attention_mask") : at::ones_like(ids);
  if (mask.sizes() != ids.sizes()) {
    throw ConfigError(fmt::format("{}: attention_mask: expected the shape of input_ids", request.inputs));
  }
  const auto generated = train::generate(worker, request.search, prompts_from(arrays, mask));
  Texts texts;
  for (std::size_t row = 0; row < generated.size(); ++row) {
    texts[static_cast<std::int64_t>(row)] = generated[row];
  }
  return texts;
}

/// Brings the texts of all replicas to rank 0 and writes them there. Collective: every rank.
void write_texts(train::Worker& worker, const Texts& own, const std::string& output) {
  auto& control = worker.control();
  const auto& place = worker.place();
  Texts texts;
  for (int replica = 0; replica < place.num_replicas; ++replica) {
    const auto json = dist::broadcast_text(control, nlohmann::json(own).dump(), place.world_rank_of(0, replica));
    texts.merge(nlohmann::json::parse(json).get<Texts>());
  }
  std::string lines;
  for (const auto& [row, tokens] : texts) {
    lines += nlohmann::json({{"row", row}, {"token_ids", tokens}}).dump() + "\n";
  }
  dist::together(
      control, "writing " + output,
      [&] {
        if (control.rank() == 0) {
          write_file_durably(output, lines);
        }
      },
      ExitCode::kStorage);
}

}  // namespace

ExitCode run_generate(const Arguments& arguments) {
  RunConfig run;
  WeightsRequest weights;
  GenerateRequest request;
  OptionTable table;
  describe_inference(table, run);
  describe(table, weights);
  train::describe(table, request.search);
  table.add("generate.batch_size", request.batch_size)
      .at_least(1)
      .unit("rows")
      .help("Prompts that are worked on together; their texts do not depend on it.");
  table.add("split", request.split).help("Split of the dataset.");
  table.add("inputs", request.inputs)
      .help("HDF5 file with input_ids and attention_mask, padded on either side, in place of a dataset.");
  table.add("output", request.output).required().help("JSONL file to write: row and token_ids of each generated text.");
  if (wants_help(arguments)) {
    print_once(
        "usage: espalier generate --run FOLDER --split NAME --output O.jsonl\n"
        "       espalier generate --model.path FOLDER [--adapter FOLDER] --inputs I.h5 --output O.jsonl\n\n" +
        table.help());
    return ExitCode::kOk;
  }
  return run_in_session([&](Session& session) {
    const auto loaded = make_worker_with_weights(session, arguments, table, run, weights,
                                                 [&] { check_places(table, request.inputs, request.output); });
    const auto texts =
        request.inputs.empty() ? generate_split(loaded, run, request) : generate_arrays(*loaded.worker, request);
    write_texts(*loaded.worker, texts, request.output);
    return ExitCode::kOk;
  });
}

}  // namespace espalier::launch
