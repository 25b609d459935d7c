// SPDX-License-Identifier: Apache-2.0
#include "launch/array_files.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <set>

#include "common/error.h"
#include "common/hdf5_file.h"

namespace espalier::launch {

model::NamedTensors read_arrays(const std::string& path) {
  static const std::set<std::string> known = {
      "input_ids",         "attention_mask",         "token_type_ids", "position_ids",
      "decoder_input_ids", "decoder_attention_mask", "pixel_values",   "labels"};
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
