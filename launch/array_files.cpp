// SPDX-License-Identifier: Apache-2.0
#include "launch/array_files.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <optional>
#include <set>
#include <utility>

#include "common/error.h"
#include "common/hdf5_file.h"
#include "dist/agree.h"
#include "launch/adapter_files.h"
#include "model/input_names.h"

namespace espalier::launch {

FittingDataset open_fitting_dataset(train::Worker& worker, const data::DataConfig& config) {
  std::optional<FittingDataset> opened;
  dist::together(worker.control(), "opening the dataset", [&] {
    auto dataset = data::Dataset::open(config.path);
    auto info = data::with_label_column(dataset.info(), config.label_column);
    require_fit(worker.backbone(), info);
    opened.emplace(FittingDataset{std::move(dataset), std::move(info)});
  });
  return std::move(*opened);
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
