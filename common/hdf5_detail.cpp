// SPDX-License-Identifier: Apache-2.0
#include "common/hdf5_detail.h"

#include <spdlog/fmt/fmt.h>

#include <mutex>

#include "common/check.h"
#include "common/error.h"

namespace espalier::detail {

void prepare_hdf5() {
  // Without this HDF5 crashes at exit after a full disk. It must come before any other call.
  static std::once_flag once;
  std::call_once(once, [] { H5dont_atexit(); });
  // Errors become exceptions; the printing is switched per thread.
  thread_local const bool is_quiet = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  static_cast<void>(is_quiet);
}

std::string hdf5_error() {
  std::string text = "no further reason given";
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned depth, const H5E_error2_t* error, void* out) -> herr_t {
        if (depth == 0 && error->desc != nullptr) {
          *static_cast<std::string*>(out) = error->desc;
        }
        return 0;
      },
      &text);
  return text;
}

bool hdf5_exists(hid_t file, const std::string& name) {
  // H5Lexists fails on a missing parent.
  for (std::size_t end = name.find('/', 1);; end = name.find('/', end + 1)) {
    const std::string part = name.substr(0, end);
    if (part != "/" && !part.empty() && H5Lexists(file, part.c_str(), H5P_DEFAULT) <= 0) {
      return false;
    }
    if (end == std::string::npos) {
      return H5Oexists_by_name(file, name.c_str(), H5P_DEFAULT) > 0;
    }
  }
}

hid_t open_hdf5_object(const Hdf5File& file, hid_t handle, const std::string& name) {
  ESPALIER_CHECK(handle >= 0, "{} is used after it was closed", file.path().string());
  prepare_hdf5();
  if (name.empty() || !hdf5_exists(handle, name)) {
    throw ConfigError(fmt::format("{}: expected \"{}\", found no such object", file.path().string(), name));
  }
  const hid_t object = H5Oopen(handle, name.c_str(), H5P_DEFAULT);
  if (object < 0) {
    throw IoError(fmt::format("{}: cannot open \"{}\": {}", file.path().string(), name, hdf5_error()));
  }
  return object;
}

}  // namespace espalier::detail
