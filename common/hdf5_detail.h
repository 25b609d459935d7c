// SPDX-License-Identifier: Apache-2.0
// What the parts of hdf5_file share; not for others, since it shows HDF5's own header.
#pragma once

#include <hdf5.h>

#include <string>

#include "common/hdf5_file.h"

namespace espalier::detail {

/// Owns any HDF5 handle.
class Handle {
 public:
  explicit Handle(hid_t id) : id_(id) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() {
    if (id_ >= 0) {
      H5Idec_ref(id_);
    }
  }
  [[nodiscard]] hid_t get() const { return id_; }
  [[nodiscard]] bool is_valid() const { return id_ >= 0; }

 private:
  hid_t id_;
};

/// First call of everything that touches HDF5: silences its printing in this thread, and keeps it from crashing at
/// exit.
void prepare_hdf5();
/// What HDF5 says of the last failure: its innermost message, which holds the errno text where there is one.
std::string hdf5_error();
/// Whether every part of the path exists.
bool hdf5_exists(hid_t file, const std::string& name);
/// Opens a group or dataset; the caller owns the handle.
/// Throws: ConfigError if it is absent, IoError if it cannot be opened.
hid_t open_hdf5_object(const Hdf5File& file, hid_t handle, const std::string& name);

}  // namespace espalier::detail
