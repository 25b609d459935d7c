// SPDX-License-Identifier: Apache-2.0
#include "train/run_folder.h"

#include <fcntl.h>
#include <spdlog/fmt/fmt.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

#include "common/durable_file.h"
#include "common/error.h"
#include "common/log.h"

namespace espalier::train {

RunLock::RunLock(const std::filesystem::path& file)
    : descriptor_(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
  if (descriptor_ < 0) {
    throw IoError(fmt::format("{}: cannot be opened ({}); check run.folder and its permissions", file.string(),
                              std::strerror(errno)));
  }
  while (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
    const int cause = errno;
    if (cause == EINTR) {
      continue;
    }
    if (cause == ENOLCK || cause == ENOSYS || cause == EOPNOTSUPP) {
      log_warning("train", "{}: the file system knows no locks ({}); see to it that no other process trains there",
                  file.string(), std::strerror(cause));
      return;
    }
    ::close(std::exchange(descriptor_, -1));
    if (cause != EWOULDBLOCK) {
      throw IoError(fmt::format("{}: cannot be locked ({})", file.string(), std::strerror(cause)));
    }
    throw ConfigError(
        fmt::format("run.folder: expected one that no other process trains in, found {} held by {}; wait for it, end "
                    "it, or choose another folder",
                    file.string(), read_file(file)));
  }
  char host[256] = {};
  ::gethostname(host, sizeof(host) - 1);
  const auto owner = fmt::format("host {}, process {}", host, ::getpid());
  // For people: the lock holds without it.
  if (::ftruncate(descriptor_, 0) != 0 ||
      ::pwrite(descriptor_, owner.data(), owner.size(), 0) != static_cast<ssize_t>(owner.size())) {
    log_warning("train", "{}: cannot be written: {}", file.string(), std::strerror(errno));
  }
}

RunLock::~RunLock() {
  if (descriptor_ >= 0) {
    ::close(descriptor_);
  }
}

void RunFolder::create() const {
  make_folder_durably(path_);
}

void RunFolder::append_metrics(const nlohmann::json& record) const {
  std::ofstream file(metrics_file(), std::ios::app);
  file << record.dump() << '\n';
  file.flush();
  if (!file) {
    throw IoError(fmt::format("{}: cannot be written; check free space and permissions", metrics_file().string()));
  }
}

void RunFolder::truncate_metrics(std::int64_t step) const {
  if (!std::filesystem::exists(metrics_file())) {
    return;
  }
  std::istringstream lines(read_file(metrics_file()));
  std::string kept;
  for (std::string line; std::getline(lines, line);) {
    const auto record = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    // A killed run may leave half a line.
    if (record.is_object() && record.value("step", std::int64_t{0}) <= step) {
      kept += line + '\n';
    }
  }
  write_file_durably(metrics_file(), kept);
}

}  // namespace espalier::train
