// SPDX-License-Identifier: Apache-2.0
#include "common/check.h"

#include <filesystem>

#include "common/error.h"

namespace espalier::detail {

void check_failed(const char* expression, const char* file, int line, const std::string& message) {
  // Folder and file: where somebody's checkout lies does not matter.
  const std::filesystem::path path(file);
  const auto place = (path.parent_path().filename() / path.filename()).string();
  throw InternalError(fmt::format("{}:{}: expected {}{}{}; this is a defect of Espalier, please report it", place, line,
                                  expression, message.empty() ? "" : ": ", message));
}

}  // namespace espalier::detail
