// SPDX-License-Identifier: Apache-2.0
// espalier predict: logits of a split, or of plain padded arrays under their `transformers` names (docs/predict.md).
#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <functional>

#include "common/durable_file.h"
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

/// Rank 0 writes the file, in which `fill` puts everything: whole, or what stood there stays. Collective: every rank.
void write_output(train::Worker& worker, const std::string& path, const std::function<void(Hdf5File& file)>& fill) {
  dist::together(
      worker.control(), "writing " + path,
      [&] {
        if (worker.control().rank() == 0) {
          const std::string temporary = path + ".tmp";
          auto file = Hdf5File::create(temporary);
          fill(file);
          file.flush_and_close();
          fsync_file(temporary);
          rename_durably(temporary, path);
        }
      },
      ExitCode::kStorage);
}

void check_labels(const model::Backbone& backbone, const model::NamedTensors& inputs, const at::Tensor& logits,
                  const std::string& path) {
  const auto labels = inputs.find("labels");
  if (labels == inputs.end()) {
    return;
  }
  const at::Tensor& values = labels->second;
  const auto& head = backbone.head();
  const auto expected = head.is_language_model ? logits.sizes().slice(0, 2) : logits.sizes().slice(0, 1);
  if (values.sizes() != expected) {
    throw ConfigError(fmt::format("{}: labels: expected the shape [{}], found [{}]", path, fmt::join(expected, ", "),
                                  fmt::join(values.sizes(), ", ")));
  }
  if (head.num_labels == 1 || values.numel() == 0) {
    return;  // a number
  }
  const std::int64_t lowest = head.is_language_model ? model::kIgnoredLabel : 0;
  if (values.is_floating_point() || values.min().item<std::int64_t>() < lowest ||
      values.max().item<std::int64_t>() >= head.num_labels) {
    throw ConfigError(fmt::format("{}: labels: expected whole numbers from {} to {}, found {}", path, lowest,
                                  head.num_labels - 1,
                                  values.is_floating_point() ? "numbers with a fraction part" : "others"));
  }
}

/// Collective: every rank. What the last stage computed reaches every rank by a sum with zeros; rank 0 writes it.
void predict_arrays(const LoadedWorker& loaded, const PredictRequest& request) {
  train::Worker& worker = *loaded.worker;
  const auto& backbone = worker.backbone();
  const auto inputs = read_arrays(request.inputs, backbone);
  check_arrays(inputs, request.inputs, worker, /*reads_ids=*/!backbone.chain.front().patch_embedding);
  auto micro_batch = train::make_micro_batch(backbone, 0, inputs);
  const auto& shape = micro_batch.shape;
  const auto& head = backbone.head();
  const auto tokens = backbone.is_encoder_decoder() ? shape.target_tokens : shape.tokens;
  auto logits = head.is_language_model ? at::zeros({shape.rows, tokens, head.num_labels}, at::kFloat)
                                       : at::zeros({shape.rows, head.num_labels}, at::kFloat);
  if (loaded.adapter.value("task", "") == data::to_string(data::TaskKind::kMultiLabel) && inputs.contains("labels")) {
    throw ConfigError(
        fmt::format("{}: labels: expected none, since the adapter predicts several labels a row, whose "
                    "loss is not written; leave them out",
                    request.inputs));
  }
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
  const auto labels = inputs.find("labels");
  const auto loss = labels == inputs.end() ? at::Tensor() : loss_of(backbone, logits, labels->second);
  write_output(worker, request.output, [&](Hdf5File& file) {
    write_tensor(file, "logits", logits);
    if (has_hidden) {
      write_tensor(file, "last_hidden_state", hidden);
    }
    if (loss.defined()) {
      write_tensor(file, "loss", loss);
    }
  });
}

/// Collective: every rank.
void predict_split(const LoadedWorker& loaded, const RunConfig& run, const PredictRequest& request) {
  train::Worker& worker = *loaded.worker;
  const auto opened = open_fitting_dataset(loaded, run.data);
  const auto& info = opened.info;
  if (train::predicts_tokens(info.task)) {
    throw ConfigError(
        fmt::format("{}: expected a dataset whose rows have a class or a number, found task {}: logits of every token "
                    "are not written for a whole split; use evaluate, or --inputs for a batch",
                    run.data.path, data::to_string(info.task)));
  }
  const auto logits =
      train::predict(worker, {info}, opened.dataset.split(request.split), run.data, run.train.evaluation_batch_size)
          .front();
  write_output(worker, request.output, [&](Hdf5File& file) {
    write_tensor(file, "logits", logits);
    file.write_attribute("/", "split", request.split);
    file.write_attribute("/", "dataset_digest", info.content_digest);
  });
}

}  // namespace

ExitCode run_predict(const Arguments& arguments) {
  RunConfig run;
  WeightsRequest weights;
  PredictRequest request;
  OptionTable table;
  describe_inference(table, run);
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
    return ExitCode::kOk;
  }
  return run_in_session([&](Session& session) {
    const auto loaded = make_worker_with_weights(session, arguments, table, run, weights,
                                                 [&] { check_places(table, request.inputs, request.output); });
    if (request.inputs.empty()) {
      predict_split(loaded, run, request);
    } else {
      predict_arrays(loaded, request);
    }
    return ExitCode::kOk;
  });
}

}  // namespace espalier::launch
