// SPDX-License-Identifier: Apache-2.0
#include "train/run_folder.h"

#include <spdlog/fmt/fmt.h>

#include <fstream>
#include <sstream>

#include "common/durable_file.h"
#include "common/error.h"

namespace espalier::train {

void RunFolder::create() const {
  std::error_code error;
  std::filesystem::create_directories(path_, error);
  if (error) {
    throw IoError(fmt::format("run folder {}: cannot be made ({}); check run.folder and its permissions",
                              path_.string(), error.message()));
  }
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
    if (!record.is_discarded() && record.value("step", std::int64_t{0}) <= step) {
      kept += line + '\n';
    }
  }
  write_file_durably(metrics_file(), kept);
}

}  // namespace espalier::train
