// SPDX-License-Identifier: Apache-2.0
#include "launch/array_files.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <set>

#include "common/error.h"
#include "common/hdf5_file.h"
#include "model/input_names.h"

namespace espalier::launch {

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

}  // namespace espalier::launch
