// SPDX-License-Identifier: Apache-2.0
// XXH3-128: tells damaged or different bytes apart at memory speed. Not a cryptographic hash.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

struct XXH3_state_s;

namespace espalier {

/// A digest fed piece by piece; how the bytes are cut into pieces does not matter. Move-only.
class Digest {
 public:
  Digest();
  void update(const void* data, std::size_t bytes);
  void update(std::string_view text);
  /// 32 lower-case hex digits, high half first (the order of the `xxh128sum` program). More bytes may follow.
  [[nodiscard]] std::string hex() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const noexcept;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

std::string digest_of(std::string_view bytes);
/// Reads the file in pieces. Throws: IoError naming the file.
std::string digest_of_file(const std::filesystem::path& file);

}  // namespace espalier
