// SPDX-License-Identifier: Apache-2.0
// espalier predict: logits of a split, or of plain padded arrays under their `transformers` names (docs/predict.md).
#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include "common/error.h"
#include "common/hdf5_file.h"
#include "dist/agree.h"
#include "launch/adapter_files.h"
#include "launch/commands.h"
#include "model/loss.h"
#include "train/evaluation.h"

namespace espalier::launch {
namespace {

struct PredictRequest {
  std::string split = "test";
  std::string inputs;
  std::string output;
};

void write_tensor(Hdf5File& file, const std::string& name, const at::Tensor& tensor) {
  const auto values = tensor.to(at::kFloat).cpu().contiguous();
  file.write(name, Hdf5Type::kFloat32, values.sizes().vec(), values.const_data_ptr());
}

/// The arrays of `path` that a model reads, as int64 (labels of a regression as float).
model::NamedTensors read_arrays(const std::string& path) {
  const auto file = Hdf5File::open(path);
  model::NamedTensors tensors;
  for (const auto& name : file.children("/")) {
    const auto info = file.info(name);
    const bool is_float = info.type == Hdf5Type::kFloat32 || info.type == Hdf5Type::kFloat64;
    auto tensor = at::empty(info.shape, is_float ? at::kFloat : at::kLong);
    file.read(name, is_float ? Hdf5Type::kFloat32 : Hdf5Type::kInt64, tensor.mutable_data_ptr());
    tensors.emplace(name, tensor);
  }
  const auto ids = tensors.find("input_ids");
  if (ids == tensors.end() || ids->second.dim() != 2) {
    throw ConfigError(fmt::format("{}: expected a dataset 'input_ids' of shape [rows, tokens], found {}", path,
                                  ids == tensors.end() ? "none" : fmt::format("{} dimensions", ids->second.dim())));
  }
  for (const auto& [name, tensor] : tensors) {
    const bool is_known =
        name == "input_ids" || name == "attention_mask" || name == "token_type_ids" || name == "labels";
    if (!is_known) {
      throw ConfigError(
          fmt::format("{}: expected input_ids, attention_mask, token_type_ids or labels, found '{}'", path, name));
    }
    if (name == "labels" ? tensor.size(0) != ids->second.size(0) : tensor.sizes() != ids->second.sizes()) {
      throw ConfigError(fmt::format("{}: '{}': expected the shape of input_ids [{}], found [{}]", path, name,
                                    fmt::join(ids->second.sizes(), ", "), fmt::join(tensor.sizes(), ", ")));
    }
  }
  return tensors;
}

/// Collective: every rank. What the last stage computed reaches every rank by a sum with zeros; rank 0 writes it.
void predict_arrays(train::Worker& worker, const PredictRequest& request) {
  const auto inputs = read_arrays(request.inputs);
  if (worker.place().num_replicas != 1) {
    throw ConfigError(
        "--inputs: expected one replica (plain arrays are one batch), found parallel.replicas > 1; use stages only");
  }
  const auto micro_batch = train::make_micro_batch(0, inputs);
  const auto vocab_size = worker.backbone().vocab_size;
  const auto& ids = inputs.at("input_ids");
  if (ids.numel() > 0 && (ids.min().item<std::int64_t>() < 0 || ids.max().item<std::int64_t>() >= vocab_size)) {
    throw ConfigError(fmt::format("{}: input_ids: expected ids in 0..{}, found {}..{}", request.inputs, vocab_size - 1,
                                  ids.min().item<std::int64_t>(), ids.max().item<std::int64_t>()));
  }
  auto logits = at::zeros({micro_batch.shape.rows, worker.backbone().chain.back().head->num_labels}, at::kFloat);
  auto hidden = at::zeros({micro_batch.shape.rows, micro_batch.shape.tokens, worker.backbone().width}, at::kFloat);
  bool has_hidden = false;
  worker.executor().evaluate(
      1, [&](std::size_t) { return micro_batch; },
      [&](const train::MicroBatch&, const model::Carry& outgoing) {
        logits.copy_(outgoing.at("logits"));
        if (const auto found = outgoing.find("hidden"); found != outgoing.end()) {
          hidden.copy_(found->second);
          has_hidden = true;
        }
      });
  has_hidden = dist::agree_any(worker.control(), has_hidden);
  worker.control().all_reduce(logits).wait();
  worker.control().all_reduce(hidden).wait();
  std::string error;
  if (worker.control().rank() == 0) {
    try {
      auto file = Hdf5File::create(request.output);
      write_tensor(file, "logits", logits);
      if (has_hidden) {
        write_tensor(file, "last_hidden_state", hidden);
      }
      if (const auto labels = inputs.find("labels"); labels != inputs.end()) {
        const auto loss = logits.size(1) == 1
                              ? model::regression_loss(logits, labels->second.to(at::kFloat), logits.size(0))
                              : model::classification_loss(logits, labels->second, logits.size(0));
        write_tensor(file, "loss", loss);
      }
      file.flush_and_close();
    } catch (const Error& failure) {
      error = failure.what();
    }
  }
  dist::require_all(worker.control(), error, static_cast<int>(ExitCode::kStorage), "writing " + request.output);
}

/// Collective: every rank.
void predict_split(train::Worker& worker, const RunConfig& run, const PredictRequest& request) {
  const auto dataset = data::Dataset::open(run.data.path);
  require_same_vocabulary(worker.backbone(), dataset.info());
  const auto logits = train::predict(worker, dataset.split(request.split), run.data, run.train.evaluation_batch_size);
  std::string error;
  if (worker.control().rank() == 0) {
    try {
      auto file = Hdf5File::create(request.output);
      write_tensor(file, "logits", logits);
      file.write_attribute("/", "split", request.split);
      file.write_attribute("/", "dataset_digest", dataset.info().content_digest);
      file.flush_and_close();
    } catch (const Error& failure) {
      error = failure.what();
    }
  }
  dist::require_all(worker.control(), error, static_cast<int>(ExitCode::kStorage), "writing " + request.output);
}

}  // namespace

int run_predict(const Arguments& arguments) {
  RunConfig run;
  WeightsRequest weights;
  PredictRequest request;
  OptionTable table;
  describe(table, run);
  describe(table, weights);
  table.add("split", request.split).help("Split of the dataset.");
  table.add("inputs", request.inputs)
      .help("HDF5 file of padded arrays under their transformers names, in place of a dataset.");
  table.add("output", request.output)
      .help("HDF5 file to write: logits, and with --inputs last_hidden_state and (with labels) loss.");
  if (wants_help(arguments)) {
    print_once(
        "usage: espalier predict --run FOLDER --split NAME --output O.h5\n"
        "       espalier predict --model.path FOLDER [--adapter FOLDER] --inputs I.h5 --output O.h5\n\n" +
        table.help());
    return static_cast<int>(ExitCode::kOk);
  }
  return run_in_session([&](Session& session) {
    const auto worker = make_worker_with_weights(session, arguments, table, run, weights);
    if (request.output.empty()) {
      throw ConfigError("--output: expected the HDF5 file to write, found nothing");
    }
    if (request.inputs.empty()) {
      predict_split(*worker, run, request);
    } else {
      predict_arrays(*worker, request);
    }
    return static_cast<int>(ExitCode::kOk);
  });
}

}  // namespace espalier::launch
