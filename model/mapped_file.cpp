// SPDX-License-Identifier: Apache-2.0
#include "model/mapped_file.h"

#include <fcntl.h>
#include <spdlog/fmt/fmt.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "common/error.h"

namespace espalier::model {
namespace {

std::string text_of_errno() {
  return std::generic_category().message(errno);
}

}  // namespace

MappedFile::MappedFile(std::filesystem::path file) : path_(std::move(file)) {
  // Without O_NONBLOCK a named pipe would wait for its writer.
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) {
    const bool is_missing = errno == ENOENT || errno == ENOTDIR || errno == ELOOP;
    const std::string message = fmt::format("{}: expected a readable file, found: {}", path_.string(), text_of_errno());
    if (is_missing) {
      throw ConfigError(message);
    }
    throw IoError(message);
  }
  try {
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0) {
      throw IoError(fmt::format("{}: cannot be examined: {}", path_.string(), text_of_errno()));
    }
    if (!S_ISREG(status.st_mode)) {
      throw ConfigError(fmt::format("{}: expected a regular file, found a folder or a device", path_.string()));
    }
    size_ = static_cast<std::size_t>(status.st_size);
    modified_ = status.st_mtim;
    if (size_ > 0) {
      void* mapped = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor_, 0);
      if (mapped == MAP_FAILED) {
        throw IoError(fmt::format("{}: mapping {} bytes failed: {}", path_.string(), size_, text_of_errno()));
      }
      data_ = static_cast<const char*>(mapped);
    }
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) {
    ::munmap(const_cast<char*>(data_), size_);
  }
  ::close(descriptor_);
}

void MappedFile::check_unchanged() const {
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) {
    throw IoError(fmt::format("{}: cannot be examined: {}", path_.string(), text_of_errno()));
  }
  if (static_cast<std::size_t>(status.st_size) != size_ || status.st_mtim.tv_sec != modified_.tv_sec ||
      status.st_mtim.tv_nsec != modified_.tv_nsec) {
    throw IoError(
        fmt::format("{}: changed while in use: {} bytes when opened, {} now; keep model folders unchanged during "
                    "a run and replace a file by renaming a new one over it",
                    path_.string(), size_, status.st_size));
  }
}

void MappedFile::drop_pages(std::size_t offset, std::size_t num_bytes) const noexcept {
  const auto page_bytes = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t begin = offset / page_bytes * page_bytes;
  const std::size_t end = offset + num_bytes;
  if (num_bytes > 0 && end <= size_) {
    // Only advice: nothing is lost when the kernel declines.
    (void)::madvise(const_cast<char*>(data_) + begin, end - begin, MADV_DONTNEED);
  }
}

}  // namespace espalier::model
