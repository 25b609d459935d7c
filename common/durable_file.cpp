// SPDX-License-Identifier: Apache-2.0
#include "common/durable_file.h"

#include <fcntl.h>
#include <spdlog/fmt/fmt.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "common/error.h"

namespace espalier {
namespace {

[[noreturn]] void fail(const std::filesystem::path& path, std::string_view what, int cause) {
  throw IoError(fmt::format("{}: cannot {}: {}", path.string(), what, std::strerror(cause)));
}

/// Owns a file descriptor.
class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, int flags, std::string_view what)
      : value_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {
    if (value_ < 0) {
      fail(path, what, errno);
    }
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (value_ >= 0) {
      ::close(value_);
    }
  }
  [[nodiscard]] int get() const { return value_; }
  /// Network file systems tell of a failed write as late as here.
  void close(const std::filesystem::path& path) {
    if (::close(std::exchange(value_, -1)) != 0) {
      fail(path, "close", errno);
    }
  }

 private:
  int value_;
};

void fsync_or_fail(const Descriptor& descriptor, const std::filesystem::path& path) {
  while (::fsync(descriptor.get()) != 0) {
    if (errno != EINTR) {
      fail(path, "fsync", errno);
    }
  }
}

std::filesystem::path folder_of(const std::filesystem::path& path) {
  // "step_10/" names the same entry of the same folder as "step_10".
  const auto folder = path.has_filename() ? path.parent_path() : path.parent_path().parent_path();
  return folder.empty() ? std::filesystem::path(".") : folder;
}

void write_and_fsync(const std::filesystem::path& path, std::string_view contents) {
  Descriptor file(path, O_WRONLY | O_CREAT | O_TRUNC, "create");
  while (!contents.empty()) {
    const ssize_t written = ::write(file.get(), contents.data(), contents.size());
    if (written < 0 && errno != EINTR) {
      fail(path, "write", errno);
    }
    contents.remove_prefix(written < 0 ? 0 : static_cast<std::size_t>(written));
  }
  fsync_or_fail(file, path);
  file.close(path);
}

}  // namespace

void write_file_durably(const std::filesystem::path& path, std::string_view contents) {
  // The process id: two runs that share a folder by mistake must not write into each other's temporary.
  auto temporary = path;
  temporary += fmt::format(".{}.tmp", ::getpid());
  try {
    write_and_fsync(temporary, contents);
    rename_durably(temporary, path);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
}

void make_folder_durably(const std::filesystem::path& folder) {
  std::error_code ignored;
  if (std::filesystem::is_directory(folder, ignored)) {
    return;
  }
  const auto above = folder_of(folder);
  make_folder_durably(above);
  const int cause = ::mkdir(folder.c_str(), 0777) == 0 ? 0 : errno;
  if (cause != 0 && !std::filesystem::is_directory(folder, ignored)) {  // else another process was faster
    fail(folder, "make the folder", cause);
  }
  fsync_folder(above);
}

void fsync_file(const std::filesystem::path& file) {
  const Descriptor descriptor(file, O_RDONLY, "open for fsync");
  fsync_or_fail(descriptor, file);
}

void fsync_folder(const std::filesystem::path& folder) {
  const Descriptor descriptor(folder, O_RDONLY | O_DIRECTORY, "open the folder for fsync");
  fsync_or_fail(descriptor, folder);
}

void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) {
    fail(from, fmt::format("rename to {}", to.string()), errno);
  }
  fsync_folder(folder_of(to));
  if (folder_of(from) != folder_of(to)) {
    fsync_folder(folder_of(from));
  }
}

std::string read_file(const std::filesystem::path& path) {
  const Descriptor file(path, O_RDONLY, "open");
  std::string contents;
  struct stat status {};
  if (::fstat(file.get(), &status) == 0 && status.st_size > 0) {
    contents.reserve(static_cast<std::size_t>(status.st_size) + 1);
  }
  std::string piece(1 << 16, '\0');
  for (;;) {
    const ssize_t bytes = ::read(file.get(), piece.data(), piece.size());
    if (bytes < 0 && errno != EINTR) {
      fail(path, "read", errno);
    }
    if (bytes == 0) {
      return contents;
    }
    contents.append(piece, 0, bytes < 0 ? 0 : static_cast<std::size_t>(bytes));
  }
}

}  // namespace espalier
