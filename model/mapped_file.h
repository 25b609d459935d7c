// SPDX-License-Identifier: Apache-2.0
// A file mapped read-only. Its pages belong to the kernel's cache: ranks of one node share them, and an unread page
// costs nothing.
#pragma once

#include <sys/types.h>

#include <ctime>
#include <filesystem>
#include <string_view>

namespace espalier::model {

/// Owns: the descriptor and the mapping. Thread: const methods are safe.
class MappedFile {
 public:
  /// Throws: ConfigError if `file` is missing or is not a regular file; IoError if it cannot be read or mapped.
  explicit MappedFile(std::filesystem::path file);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  [[nodiscard]] std::string_view bytes() const { return {data_, size_}; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

  /// Reading a page that was cut off the file is SIGBUS, so readers ask first. What happens to the file after that is
  /// beyond help. Throws: IoError if the file was written to or cut since it was mapped.
  void check_unchanged() const;

  /// Takes the pages of this range out of the process's resident memory; the next access maps them again.
  void drop_pages(std::size_t offset, std::size_t num_bytes) const noexcept;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  const char* data_ = nullptr;
  std::size_t size_ = 0;
  timespec modified_{};
};

}  // namespace espalier::model
