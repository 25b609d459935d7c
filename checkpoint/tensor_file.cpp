// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/tensor_file.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <array>

#include "common/digest.h"
#include "common/error.h"

namespace espalier::checkpoint {
namespace {

struct StoredType {
  at::ScalarType dtype;
  const char* text;  ///< On disk, see docs/checkpoint_format.md. Never change; add at the end.
  Hdf5Type stored;
  bool is_reinterpreted = false;
};
constexpr std::array<StoredType, 7> kStoredTypes = {{{at::kFloat, "float32", Hdf5Type::kFloat32},
                                                     {at::kDouble, "float64", Hdf5Type::kFloat64},
                                                     {at::kBFloat16, "bfloat16", Hdf5Type::kUInt16, true},
                                                     {at::kHalf, "float16", Hdf5Type::kUInt16, true},
                                                     {at::kInt, "int32", Hdf5Type::kInt32},
                                                     {at::kLong, "int64", Hdf5Type::kInt64},
                                                     {at::kByte, "uint8", Hdf5Type::kUInt8}}};

const StoredType& stored_type(at::ScalarType dtype, const std::string& what) {
  for (const StoredType& type : kStoredTypes) {
    if (type.dtype == dtype) return type;
  }
  throw IoError(fmt::format("{}: expected float32, float64, bfloat16, float16, int32, int64 or uint8, found {}", what,
                            c10::toString(dtype)));
}

/// Tensor names are canonical ("side.0.gate/exp_avg") and may be prefixes of each other, which HDF5 paths may not.
std::string dataset_name(const std::string& tensor_name) {
  std::string escaped;
  for (const char character : tensor_name) {
    if (character == '/' || character == '%') {
      escaped += fmt::format("%{:02X}", static_cast<unsigned char>(character));
    } else {
      escaped += character;
    }
  }
  return "tensors/" + escaped;
}

/// Throws: IoError naming `what`, expected and found, when `target` has not the shape and type of the stored tensor.
void require_alike(const TensorEntry& entry, const at::Tensor& target, const std::string& what) {
  const char* expected = stored_type(target.scalar_type(), what).text;
  if (entry.shape != target.sizes().vec() || entry.dtype != expected) {
    throw IoError(fmt::format("{}: expected {} [{}], found {} [{}]; the run that saved it had other options", what,
                              expected, fmt::join(target.sizes(), ", "), entry.dtype, fmt::join(entry.shape, ", ")));
  }
}

}  // namespace

std::string dtype_text(at::ScalarType dtype, const std::string& what) {
  return stored_type(dtype, what).text;
}

std::map<std::string, TensorEntry> write_tensor_file(const std::filesystem::path& path, const NamedTensors& tensors) {
  std::map<std::string, TensorEntry> entries;
  Hdf5File file = Hdf5File::create(path);
  for (const auto& [name, tensor] : tensors) {
    const std::string what = fmt::format("{}: tensor {}", path.string(), name);
    if (!tensor.defined()) throw IoError(what + ": expected a tensor, found an undefined one");
    const StoredType& type = stored_type(tensor.scalar_type(), what);
    const at::Tensor host = tensor.detach().to(at::kCPU).contiguous();
    file.write(dataset_name(name), type.stored, host.sizes().vec(), host.const_data_ptr());
    if (type.is_reinterpreted) file.write_attribute(dataset_name(name), "dtype", std::string(type.text));
    Digest digest;
    digest.update(host.const_data_ptr(), host.nbytes());
    entries[name] = {path.filename().string(), host.sizes().vec(), type.text, digest.hex()};
  }
  file.flush_and_close();
  return entries;
}

void read_tensor(const Hdf5File& file, const std::string& name, const TensorEntry& entry, const at::Tensor& target) {
  const std::string what = fmt::format("{}: tensor {}", file.path().string(), name);
  require_alike(entry, target, what);
  const StoredType& type = stored_type(target.scalar_type(), what);
  try {
    const Hdf5Info info = file.info(dataset_name(name));
    if (info.shape != entry.shape || info.type != type.stored) {
      throw IoError(what + ": the dataset is of another shape or type than the manifest says");
    }
    const at::Tensor host = at::empty(entry.shape, at::TensorOptions().dtype(type.dtype));
    file.read(dataset_name(name), type.stored, host.data_ptr());
    Digest digest;
    digest.update(host.const_data_ptr(), host.nbytes());
    if (digest.hex() != entry.digest) {
      throw IoError(fmt::format("{}: expected XXH3-128 {}, found {}; it was damaged after the file was verified", what,
                                entry.digest, digest.hex()));
    }
    const at::NoGradGuard no_grad;
    target.copy_(host);
  } catch (const ConfigError& error) {  // the file passed its digest, so its contents are not the user's mistake
    throw IoError(error.what());
  }
}

}  // namespace espalier::checkpoint
