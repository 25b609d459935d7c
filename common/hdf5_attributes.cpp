// SPDX-License-Identifier: Apache-2.0
// Attributes of Hdf5File: texts and integers.
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <string>

#include "common/check.h"
#include "common/error.h"
#include "common/hdf5_detail.h"
#include "common/hdf5_file.h"

namespace espalier {
using detail::Handle;
using detail::hdf5_error;
using detail::open_hdf5_object;

namespace {

/// UTF-8 of variable length: what h5py writes, and what it reads back as a str; also free of the 64 KiB bound of fixed
/// ones.
hid_t make_text_type() {
  const hid_t type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, H5T_VARIABLE);
  H5Tset_cset(type, H5T_CSET_UTF8);
  return type;
}

bool replace_attribute(hid_t object, const std::string& name, hid_t type, const void* data) {
  if (H5Aexists(object, name.c_str()) > 0 && H5Adelete(object, name.c_str()) < 0) {
    return false;
  }
  const Handle space(H5Screate(H5S_SCALAR));
  const Handle attribute(H5Acreate2(object, name.c_str(), type, space.get(), H5P_DEFAULT, H5P_DEFAULT));
  return attribute.is_valid() && H5Awrite(attribute.get(), type, data) >= 0;
}

/// Whether the attribute holds one element of `kind`.
bool is_single(hid_t attribute, hid_t type, H5T_class_t kind) {
  const Handle space(H5Aget_space(attribute));
  return H5Tget_class(type) == kind && H5Sget_simple_extent_npoints(space.get()) == 1;
}

bool read_text(hid_t attribute, hid_t stored_type, std::string& text) {
  const Handle type(H5Tcopy(H5T_C_S1));
  H5Tset_cset(type.get(), H5Tget_cset(stored_type));
  if (H5Tis_variable_str(stored_type) > 0) {
    H5Tset_size(type.get(), H5T_VARIABLE);
    char* value = nullptr;
    if (H5Aread(attribute, type.get(), &value) < 0) {
      return false;
    }
    text = value == nullptr ? "" : value;  // an empty text is stored as no text
    H5free_memory(value);
    return true;
  }
  // Null-padded memory of the stored size takes all three kinds of padding without loss.
  text.assign(H5Tget_size(stored_type), '\0');
  H5Tset_size(type.get(), text.size());
  H5Tset_strpad(type.get(), H5T_STR_NULLPAD);
  if (H5Aread(attribute, type.get(), text.data()) < 0) {
    return false;
  }
  text.resize(std::min(text.find('\0'), text.size()));
  return true;
}

}  // namespace

void Hdf5File::write_attribute(const std::string& object, const std::string& name, const std::string& text) {
  ESPALIER_CHECK(text.find('\0') == std::string::npos, "attribute {} of {} holds a null byte", name, where(object));
  const Handle handle(open_hdf5_object(*this, handle_, object));
  const Handle type(make_text_type());
  const char* data = text.c_str();
  if (!replace_attribute(handle.get(), name, type.get(), static_cast<const void*>(&data))) {
    throw IoError(fmt::format("{}: cannot write attribute \"{}\": {}", where(object), name, hdf5_error()));
  }
}

void Hdf5File::write_attribute(const std::string& object, const std::string& name, std::int64_t value) {
  const Handle handle(open_hdf5_object(*this, handle_, object));
  if (!replace_attribute(handle.get(), name, H5T_NATIVE_INT64, &value)) {
    throw IoError(fmt::format("{}: cannot write attribute \"{}\": {}", where(object), name, hdf5_error()));
  }
}

std::optional<std::string> Hdf5File::text_attribute(const std::string& object, const std::string& name) const {
  const Handle handle(open_hdf5_object(*this, handle_, object));
  if (H5Aexists(handle.get(), name.c_str()) <= 0) {
    return std::nullopt;
  }
  const Handle attribute(H5Aopen(handle.get(), name.c_str(), H5P_DEFAULT));
  const Handle type(H5Aget_type(attribute.get()));
  if (!is_single(attribute.get(), type.get(), H5T_STRING)) {
    throw ConfigError(
        fmt::format("{}: expected attribute \"{}\" to be one text, found another type", where(object), name));
  }
  std::string text;
  if (!read_text(attribute.get(), type.get(), text)) {
    throw IoError(fmt::format("{}: cannot read attribute \"{}\": {}", where(object), name, hdf5_error()));
  }
  return text;
}

std::optional<std::int64_t> Hdf5File::int_attribute(const std::string& object, const std::string& name) const {
  const Handle handle(open_hdf5_object(*this, handle_, object));
  if (H5Aexists(handle.get(), name.c_str()) <= 0) {
    return std::nullopt;
  }
  const Handle attribute(H5Aopen(handle.get(), name.c_str(), H5P_DEFAULT));
  const Handle type(H5Aget_type(attribute.get()));
  if (!is_single(attribute.get(), type.get(), H5T_INTEGER)) {
    throw ConfigError(
        fmt::format("{}: expected attribute \"{}\" to be one integer, found another type", where(object), name));
  }
  std::int64_t value = 0;
  if (H5Aread(attribute.get(), H5T_NATIVE_INT64, &value) < 0) {
    throw IoError(fmt::format("{}: cannot read attribute \"{}\": {}", where(object), name, hdf5_error()));
  }
  return value;
}

}  // namespace espalier
