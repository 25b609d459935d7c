// SPDX-License-Identifier: Apache-2.0
#include "launch/array_files.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <filesystem>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "common/error.h"
#include "common/hdf5_file.h"
#include "common/log.h"
#include "dist/agree.h"
#include "model/input_names.h"

namespace espalier::launch {

namespace {

const std::set<std::string_view> kMayBeFractions = {"pixel_values", "vis_feats", "vis_boxes", "labels"};

}  // namespace

data::Dataset open_dataset(dist::Communicator& control, const data::DataConfig& config) {
  std::optional<data::Dataset> dataset;
  dist::together(control, "opening the dataset", [&] { dataset = data::Dataset::open(config.path); });
  if (config.row_limit() < dataset->info().max_length) {
    log_warning("data",
                "data.max_length = {} cuts off the ends of rows that {} keeps up to {} tokens, closing tokens too",
                config.max_length, config.path, dataset->info().max_length);
  }
  return std::move(*dataset);
}

FittingDataset open_fitting_dataset(const LoadedWorker& loaded, const data::DataConfig& config) {
  auto dataset = open_dataset(loaded.worker->control(), config);
  auto info = data::with_label_column(dataset.info(), config.label_column);
  require_fit(loaded.worker->backbone(), info, loaded.adapter);
  return {std::move(dataset), std::move(info)};
}

void check_places(const OptionTable& table, const std::string& inputs, const std::string& output) {
  if (!inputs.empty() && table.find("split")->source() != OptionSource::kDefault) {
    throw ConfigError("--split: expected either a split of the dataset or --inputs, found both; leave one out");
  }
  if (output.empty()) {
    throw ConfigError("--output: expected the file to write, found nothing");
  }
  const auto folder = std::filesystem::absolute(output).parent_path();
  if (!std::filesystem::is_directory(folder)) {
    throw ConfigError(
        fmt::format("--output: expected a file in a folder that is there, found no folder {}", folder.string()));
  }
}

model::NamedTensors read_arrays(const std::string& path, const model::Backbone& backbone) {
  auto known = model::input_names(backbone);
  known.insert("labels");
  const auto file = Hdf5File::open(path);
  model::NamedTensors tensors;
  for (const auto& name : file.children("/")) {
    if (!known.contains(name)) {
      throw ConfigError(fmt::format("{}: expected arrays among {}, found '{}'", path, fmt::join(known, ", "), name));
    }
    const auto info = file.info(name);
    const bool is_float = info.type == Hdf5Type::kFloat32 || info.type == Hdf5Type::kFloat64;
    if (is_float && !kMayBeFractions.contains(name)) {
      throw ConfigError(fmt::format("{}: {}: expected whole numbers, found floats; store them as int64", path, name));
    }
    auto tensor = at::empty(info.shape, is_float ? at::kFloat : at::kLong);
    file.read(name, is_float ? Hdf5Type::kFloat32 : Hdf5Type::kInt64, tensor.mutable_data_ptr());
    tensors.emplace(name, tensor);
  }
  return tensors;
}

void check_arrays(const model::NamedTensors& arrays, const std::string& path, const train::Worker& worker,
                  bool reads_ids) {
  if (worker.place().num_replicas != 1) {
    throw ConfigError(
        "--inputs: expected one replica (plain arrays are one batch), found parallel.replicas > 1; use stages only");
  }
  const auto ids = arrays.find("input_ids");
  if (reads_ids && (ids == arrays.end() || ids->second.dim() != 2)) {
    throw ConfigError(fmt::format(
        "{}: expected a dataset 'input_ids' of shape [rows, tokens], found {}; write the ids of whole padded rows",
        path,
        ids == arrays.end() ? std::string("none") : fmt::format("[{}]", fmt::join(ids->second.sizes().vec(), ", "))));
  }
}

}  // namespace espalier::launch
