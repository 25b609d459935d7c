// SPDX-License-Identifier: Apache-2.0
#include "common/hdf5_file.h"

#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <type_traits>
#include <utility>

#include "common/check.h"
#include "common/error.h"
#include "common/hdf5_detail.h"

namespace espalier {
using detail::Handle;
using detail::hdf5_error;
using detail::hdf5_exists;
using detail::open_hdf5_object;
using detail::prepare_hdf5;

namespace {

static_assert(std::is_same_v<hid_t, std::int64_t>, "Hdf5File keeps an hid_t as int64_t");

hid_t memory_type(Hdf5Type type) {
  switch (type) {
    case Hdf5Type::kInt32:
      return H5T_NATIVE_INT32;
    case Hdf5Type::kInt64:
      return H5T_NATIVE_INT64;
    case Hdf5Type::kUInt8:
      return H5T_NATIVE_UINT8;
    case Hdf5Type::kUInt16:
      return H5T_NATIVE_UINT16;
    case Hdf5Type::kFloat32:
      return H5T_NATIVE_FLOAT;
    case Hdf5Type::kFloat64:
      return H5T_NATIVE_DOUBLE;
  }
  ESPALIER_CHECK(false, "{} is no Hdf5Type", static_cast<int>(type));
  return -1;
}

std::string_view name_of(Hdf5Type type) {
  constexpr std::string_view kNames[] = {"int32", "int64", "uint8", "uint16", "float32", "float64"};
  return kNames[static_cast<std::size_t>(type)];
}

bool is_float(Hdf5Type type) {
  return type == Hdf5Type::kFloat32 || type == Hdf5Type::kFloat64;
}

/// The Hdf5Type of a stored type in either byte order; nothing for every other type.
std::optional<Hdf5Type> stored_type(hid_t type) {
  const std::size_t bytes = H5Tget_size(type);
  if (H5Tget_class(type) == H5T_FLOAT) {
    return bytes == 4   ? std::optional(Hdf5Type::kFloat32)
           : bytes == 8 ? std::optional(Hdf5Type::kFloat64)
                        : std::nullopt;
  }
  if (H5Tget_class(type) == H5T_INTEGER) {
    const bool is_signed = H5Tget_sign(type) == H5T_SGN_2;
    if (is_signed && (bytes == 4 || bytes == 8)) {
      return bytes == 4 ? Hdf5Type::kInt32 : Hdf5Type::kInt64;
    }
    if (!is_signed && (bytes == 1 || bytes == 2)) {
      return bytes == 1 ? Hdf5Type::kUInt8 : Hdf5Type::kUInt16;
    }
  }
  return std::nullopt;
}

/// HDF5 clamps what does not fit unless told otherwise.
H5T_conv_ret_t refuse_out_of_range(H5T_conv_except_t problem, hid_t, hid_t, void*, void*, void* was_out_of_range) {
  if (problem == H5T_CONV_EXCEPT_RANGE_HI || problem == H5T_CONV_EXCEPT_RANGE_LOW) {
    *static_cast<bool*>(was_out_of_range) = true;
    return H5T_CONV_ABORT;
  }
  return H5T_CONV_UNHANDLED;
}

hid_t open_dataset(const Hdf5File& file, hid_t handle, const std::string& name) {
  const hid_t object = open_hdf5_object(file, handle, name);
  if (H5Iget_type(object) != H5I_DATASET) {
    H5Idec_ref(object);
    throw ConfigError(
        fmt::format("{}: expected \"{}\" to be a dataset, found another kind of object", file.path().string(), name));
  }
  return object;
}

std::int64_t num_elements(const std::vector<std::int64_t>& shape) {
  std::int64_t product = 1;
  for (const std::int64_t extent : shape) {
    product *= extent;
  }
  return product;
}

template <typename T>
constexpr Hdf5Type kTypeOf = std::is_same_v<T, std::int32_t>    ? Hdf5Type::kInt32
                             : std::is_same_v<T, std::int64_t>  ? Hdf5Type::kInt64
                             : std::is_same_v<T, std::uint8_t>  ? Hdf5Type::kUInt8
                             : std::is_same_v<T, std::uint16_t> ? Hdf5Type::kUInt16
                             : std::is_same_v<T, float>         ? Hdf5Type::kFloat32
                                                                : Hdf5Type::kFloat64;

}  // namespace

std::size_t size_of(Hdf5Type type) {
  constexpr std::size_t kBytes[] = {4, 8, 1, 2, 4, 8};
  return kBytes[static_cast<std::size_t>(type)];
}

Hdf5File Hdf5File::create(const std::filesystem::path& path) {
  prepare_hdf5();
  const hid_t handle = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  if (handle < 0) {
    throw IoError(fmt::format("{}: cannot create the HDF5 file: {}", path.string(), hdf5_error()));
  }
  return {path, handle};
}

Hdf5File Hdf5File::open(const std::filesystem::path& path) {
  prepare_hdf5();
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    throw ConfigError(
        fmt::format("{}: expected an HDF5 file, found nothing of this name; check the path", path.string()));
  }
  if (!std::filesystem::is_regular_file(status)) {
    throw ConfigError(fmt::format("{}: expected an HDF5 file, found no regular file; check the path", path.string()));
  }
  const htri_t is_hdf5 = H5Fis_hdf5(path.c_str());
  if (is_hdf5 == 0) {
    throw ConfigError(fmt::format("{}: expected an HDF5 file, found another format", path.string()));
  }
  const hid_t handle = is_hdf5 < 0 ? -1 : H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  if (handle < 0) {
    throw IoError(fmt::format("{}: cannot open the HDF5 file, it may be cut short or unreadable: {}", path.string(),
                              hdf5_error()));
  }
  return {path, handle};
}

Hdf5File::Hdf5File(Hdf5File&& other) noexcept
    : path_(std::move(other.path_)), handle_(std::exchange(other.handle_, -1)) {}

Hdf5File& Hdf5File::operator=(Hdf5File&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(handle_, other.handle_);
  return *this;
}

Hdf5File::~Hdf5File() {
  if (handle_ >= 0) {
    prepare_hdf5();
    H5Fclose(handle_);
  }
}

std::string Hdf5File::where(const std::string& object) const {
  return fmt::format("{}: \"{}\"", path_.string(), object);
}

bool Hdf5File::contains(const std::string& name) const {
  ESPALIER_CHECK(handle_ >= 0, "{} is used after it was closed", path_.string());
  prepare_hdf5();
  return !name.empty() && hdf5_exists(handle_, name);
}

std::vector<std::string> Hdf5File::children(const std::string& group) const {
  const Handle object(open_hdf5_object(*this, handle_, group));
  if (H5Iget_type(object.get()) != H5I_GROUP) {
    throw ConfigError(fmt::format("{}: expected a group, found another kind of object", where(group)));
  }
  H5G_info_t group_info{};
  bool is_good = H5Gget_info(object.get(), &group_info) >= 0;
  std::vector<std::string> names;
  for (hsize_t i = 0; is_good && i < group_info.nlinks; ++i) {
    const auto by_index = [&](char* buffer, std::size_t bytes) {
      return H5Lget_name_by_idx(object.get(), ".", H5_INDEX_NAME, H5_ITER_INC, i, buffer, bytes, H5P_DEFAULT);
    };
    const ssize_t length = by_index(nullptr, 0);
    is_good = length >= 0;
    if (is_good) {
      names.emplace_back(static_cast<std::size_t>(length), '\0');
      is_good = by_index(names.back().data(), static_cast<std::size_t>(length) + 1) >= 0;
    }
  }
  if (!is_good) {
    throw IoError(fmt::format("{}: cannot list the group: {}", where(group), hdf5_error()));
  }
  std::sort(names.begin(), names.end());
  return names;
}

Hdf5Info Hdf5File::info(const std::string& name) const {
  const Handle dataset(open_dataset(*this, handle_, name));
  const Handle type(H5Dget_type(dataset.get()));
  const Handle space(H5Dget_space(dataset.get()));
  const int rank = space.is_valid() ? H5Sget_simple_extent_ndims(space.get()) : -1;
  if (rank < 0 || !type.is_valid()) {
    throw IoError(fmt::format("{}: cannot read shape and type: {}", where(name), hdf5_error()));
  }
  const auto known_type = stored_type(type.get());
  if (!known_type || H5Sget_simple_extent_type(space.get()) == H5S_NULL) {
    throw ConfigError(fmt::format(
        "{}: expected elements of int32, int64, uint8, uint16, float32 or float64, found another type", where(name)));
  }
  std::vector<hsize_t> extents(static_cast<std::size_t>(rank));
  H5Sget_simple_extent_dims(space.get(), extents.data(), nullptr);
  return {{extents.begin(), extents.end()}, *known_type};
}

void Hdf5File::write(const std::string& name, Hdf5Type type, const std::vector<std::int64_t>& shape, const void* data) {
  ESPALIER_CHECK(handle_ >= 0, "{} is used after it was closed", path_.string());
  ESPALIER_CHECK(std::all_of(shape.begin(), shape.end(), [](std::int64_t extent) { return extent >= 0; }), "{}",
                 where(name));
  prepare_hdf5();
  const Handle make_parents(H5Pcreate(H5P_LINK_CREATE));
  H5Pset_create_intermediate_group(make_parents.get(), 1);
  // No time stamps: equal contents give equal bytes, and digests tell.
  const Handle untimed(H5Pcreate(H5P_DATASET_CREATE));
  H5Pset_obj_track_times(untimed.get(), false);
  const std::vector<hsize_t> extents(shape.begin(), shape.end());
  const Handle space(H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr));
  const Handle dataset(H5Dcreate2(handle_, name.c_str(), memory_type(type), space.get(), make_parents.get(),
                                  untimed.get(), H5P_DEFAULT));
  const bool is_written =
      dataset.is_valid() && (num_elements(shape) == 0 ||
                             H5Dwrite(dataset.get(), memory_type(type), H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
  if (!is_written) {
    throw IoError(
        fmt::format("{}: cannot write {} [{}]: {}", where(name), name_of(type), fmt::join(shape, ", "), hdf5_error()));
  }
}

void Hdf5File::read(const std::string& name, Hdf5Type type, void* data) const {
  const Hdf5Info stored = info(name);
  if (is_float(stored.type) != is_float(type)) {
    throw ConfigError(fmt::format("{}: expected elements that convert to {}, found {}", where(name), name_of(type),
                                  name_of(stored.type)));
  }
  if (num_elements(stored.shape) == 0) {
    return;
  }
  const Handle dataset(open_dataset(*this, handle_, name));
  const Handle transfer(H5Pcreate(H5P_DATASET_XFER));
  bool was_out_of_range = false;
  H5Pset_type_conv_cb(transfer.get(), refuse_out_of_range, &was_out_of_range);
  if (H5Dread(dataset.get(), memory_type(type), H5S_ALL, H5S_ALL, transfer.get(), data) < 0) {
    if (was_out_of_range) {
      throw ConfigError(
          fmt::format("{}: expected values that fit into {}, found a larger or smaller one (stored as {})", where(name),
                      name_of(type), name_of(stored.type)));
    }
    throw IoError(fmt::format("{}: cannot read the dataset: {}", where(name), hdf5_error()));
  }
}

template <typename T>
std::vector<T> Hdf5File::read_vector(const std::string& name) const {
  std::vector<T> values(static_cast<std::size_t>(num_elements(info(name).shape)));
  read(name, kTypeOf<T>, values.data());
  return values;
}
template std::vector<std::int32_t> Hdf5File::read_vector(const std::string&) const;
template std::vector<std::int64_t> Hdf5File::read_vector(const std::string&) const;
template std::vector<std::uint8_t> Hdf5File::read_vector(const std::string&) const;
template std::vector<std::uint16_t> Hdf5File::read_vector(const std::string&) const;
template std::vector<float> Hdf5File::read_vector(const std::string&) const;
template std::vector<double> Hdf5File::read_vector(const std::string&) const;

std::optional<std::int64_t> Hdf5File::byte_offset(const std::string& name) const {
  const Handle dataset(open_dataset(*this, handle_, name));
  const haddr_t offset = H5Dget_offset(dataset.get());
  return offset == HADDR_UNDEF ? std::nullopt : std::optional(static_cast<std::int64_t>(offset));
}

void Hdf5File::flush_and_close() {
  ESPALIER_CHECK(handle_ >= 0, "{} is closed twice", path_.string());
  prepare_hdf5();
  const hid_t handle = std::exchange(handle_, -1);
  const bool is_flushed = H5Fflush(handle, H5F_SCOPE_LOCAL) >= 0;
  const std::string cause = is_flushed ? "" : hdf5_error();
  const bool is_closed = H5Fclose(handle) >= 0;
  if (!is_flushed || !is_closed) {
    throw IoError(
        fmt::format("{}: cannot finish the HDF5 file: {}", path_.string(), is_flushed ? hdf5_error() : cause));
  }
}

}  // namespace espalier
