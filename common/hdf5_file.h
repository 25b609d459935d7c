// SPDX-License-Identifier: Apache-2.0
// A thin owner of one serial HDF5 file: whole contiguous datasets in, whole datasets out, with sentences for errors.
// Files are not durable by themselves (HDF5 never calls fsync): flush_and_close(), then common/durable_file.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace espalier {

/// Element types that cross the border; bf16 travels as kUInt16 with an attribute that says so.
enum class Hdf5Type { kInt32, kInt64, kUInt8, kUInt16, kFloat32, kFloat64 };
std::size_t size_of(Hdf5Type type);

struct Hdf5Info {
  std::vector<std::int64_t> shape;
  Hdf5Type type;
};

/// Names are paths without a leading slash ("group/dataset"); "/" is the root group. Move-only.
/// Thread: one thread per object.
class Hdf5File {
 public:
  /// Makes a new file; an old one of this name is truncated. Throws: IoError.
  static Hdf5File create(const std::filesystem::path& path);
  /// Opens read-only. Throws: ConfigError if it is absent or no HDF5 file, IoError if it is cut short or unreadable.
  static Hdf5File open(const std::filesystem::path& path);

  Hdf5File(Hdf5File&& other) noexcept;
  Hdf5File& operator=(Hdf5File&& other) noexcept;
  Hdf5File(const Hdf5File&) = delete;
  Hdf5File& operator=(const Hdf5File&) = delete;
  /// Closes silently: a writer that wants to know calls flush_and_close().
  ~Hdf5File();

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] bool contains(const std::string& name) const;
  /// Names directly below `group`, sorted. Throws: ConfigError if there is no such group.
  [[nodiscard]] std::vector<std::string> children(const std::string& group) const;
  /// Throws: ConfigError naming file and object if it is absent, no dataset, or of a type outside Hdf5Type.
  [[nodiscard]] Hdf5Info info(const std::string& name) const;

  /// Makes the dataset and its parent groups. Throws: IoError.
  void write(const std::string& name, Hdf5Type type, const std::vector<std::int64_t>& shape, const void* data);
  /// Reads the whole dataset into `data`, converted to `type`: integers to integers, floats to floats. A value that
  /// `type` cannot hold is an error, never clamped. Requires: `data` has room for the product of info(name).shape
  /// elements of `type`. Throws: ConfigError (absent, other kind, out of range), IoError.
  void read(const std::string& name, Hdf5Type type, void* data) const;
  /// The elements in row-major order. T: int32_t, int64_t, uint8_t, uint16_t, float, double.
  template <typename T>
  [[nodiscard]] std::vector<T> read_vector(const std::string& name) const;

  /// Where the elements of a dataset start in the file, one after the other as they are stored; nothing if they lie in
  /// pieces, compressed or not there at all. Throws: ConfigError if it is absent.
  [[nodiscard]] std::optional<std::int64_t> byte_offset(const std::string& name) const;

  /// Writes or replaces an attribute of a group or dataset ("/" is the root). Throws: IoError.
  void write_attribute(const std::string& object, const std::string& name, const std::string& text);
  void write_attribute(const std::string& object, const std::string& name, std::int64_t value);
  /// Nothing if the attribute is absent. Strings of fixed and of variable length are read.
  /// Throws: ConfigError if the object is absent or the attribute is of another kind.
  [[nodiscard]] std::optional<std::string> text_attribute(const std::string& object, const std::string& name) const;
  [[nodiscard]] std::optional<std::int64_t> int_attribute(const std::string& object, const std::string& name) const;

  /// Throws: IoError, also for what HDF5 only notices now (a full disk). The object is empty afterwards.
  void flush_and_close();

 private:
  Hdf5File(std::filesystem::path path, std::int64_t handle) : path_(std::move(path)), handle_(handle) {}
  [[nodiscard]] std::string where(const std::string& object) const;

  std::filesystem::path path_;
  std::int64_t handle_ = -1;  // an hid_t
};

}  // namespace espalier
