// SPDX-License-Identifier: Apache-2.0
// espalier predict: logits of a split, or of plain padded arrays under their `transformers` names (docs/predict.md).
#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include "common/error.h"
#include "common/hdf5_file.h"
#include "dist/agree.h"
#include "launch/adapter_files.h"
#include "launch/array_files.h"
#include "launch/commands.h"
#include "model/loss.h"
#include "train/evaluation.h"
#include "train/task.h"

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

/// What `labels` say of the logits; labels [rows] of a pooled head, [rows, tokens] with -100 of a language model.
at::Tensor loss_of(const model::Backbone& backbone, const at::Tensor& logits, const at::Tensor& labels) {
  if (backbone.head().is_language_model) {
    const bool is_shifted = !backbone.is_encoder_decoder();
    return model::token_loss(logits, labels, is_shifted, model::count_targets(labels, is_shifted));
  }
  return logits.size(1) == 1 ? model::regression_loss(logits, labels.to(at::kFloat), logits.size(0))
                             : model::classification_loss(logits, labels, logits.size(0));
}

void check_labels(const model::Backbone& backbone, const model::NamedTensors& inputs, const at::Tensor& logits,
                  const std::string& path) {
  const auto labels = inputs.find("labels");
  if (labels == inputs.end()) {
    return;
  }
  const auto expected = backbone.head().is_language_model ? logits.sizes().slice(0, 2) : logits.sizes().slice(0, 1);
  if (labels->second.sizes() != expected) {
    throw ConfigError(fmt::format("{}: labels: expected the shape [{}], found [{}]", path, fmt::join(expected, ", "),
                                  fmt::join(labels->second.sizes(), ", ")));
  }
}

/// Collective: every rank. What the last stage computed reaches every rank by a sum with zeros; rank 0 writes it.
void predict_arrays(train::Worker& worker, const PredictRequest& request) {
  const auto inputs = read_arrays(request.inputs, worker.backbone());
  if (worker.place().num_replicas != 1) {
    throw ConfigError(
        "--inputs: expected one replica (plain arrays are one batch), found parallel.replicas > 1; use stages only");
  }
  const auto& backbone = worker.backbone();
  if (!backbone.chain.front().patch_embedding && !(inputs.contains("input_ids") && inputs.at("input_ids").dim() == 2)) {
    throw ConfigError(
        fmt::format("{}: expected a dataset 'input_ids' of shape [rows, tokens], found none", request.inputs));
  }
  auto micro_batch = train::make_micro_batch(backbone, 0, inputs);
  const auto& shape = micro_batch.shape;
  const auto& head = backbone.head();
  const auto tokens = backbone.is_encoder_decoder() ? shape.target_tokens : shape.tokens;
  auto logits = head.is_language_model ? at::zeros({shape.rows, tokens, head.num_labels}, at::kFloat)
                                       : at::zeros({shape.rows, head.num_labels}, at::kFloat);
  check_labels(backbone, inputs, logits, request.inputs);
  auto hidden = at::zeros({shape.rows, tokens, head.width}, at::kFloat);
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
        write_tensor(file, "loss", loss_of(backbone, logits, labels->second));
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
  const auto info = data::with_label_column(dataset.info(), run.data.label_column);
  require_fit(worker.backbone(), info);
  const auto task = info.task;
  if (train::predicts_tokens(task)) {
    throw ConfigError(
        fmt::format("{}: expected a dataset whose rows have a class or a number, found task {}: logits of every token "
                    "are not written for a whole split; use evaluate, or --inputs for a batch",
                    run.data.path, data::to_string(task)));
  }
  const auto logits =
      train::predict(worker, {info}, dataset.split(request.split), run.data, run.train.evaluation_batch_size).front();
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
        "usage: espalier predict --run FOLDER [--objective NAME] --split NAME --output O.h5\n"
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
