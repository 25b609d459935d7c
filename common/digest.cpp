// SPDX-License-Identifier: Apache-2.0
#include "common/digest.h"

#include <fcntl.h>
#include <spdlog/fmt/fmt.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "common/check.h"
#include "common/error.h"

namespace espalier {

void Digest::Free::operator()(XXH3_state_s* state) const noexcept {
  XXH3_freeState(state);
}

Digest::Digest() : state_(XXH3_createState()) {
  ESPALIER_CHECK(state_ != nullptr, "no memory for a digest");
  XXH3_128bits_reset(state_.get());
}

void Digest::update(const void* data, std::size_t bytes) {
  // An empty piece may come with a null pointer, which xxHash reports as an error.
  if (bytes > 0) {
    XXH3_128bits_update(state_.get(), data, bytes);
  }
}

void Digest::update(std::string_view text) {
  update(text.data(), text.size());
}

std::string Digest::hex() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(state_.get());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

std::string digest_of(std::string_view bytes) {
  Digest digest;
  digest.update(bytes);
  return digest.hex();
}

std::string digest_of_file(const std::filesystem::path& file) {
  const int descriptor = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    throw IoError(fmt::format("{}: cannot open to compute its digest: {}", file.string(), std::strerror(errno)));
  }
  Digest digest;
  std::vector<char> piece(1 << 20);
  for (;;) {
    const ssize_t bytes = ::read(descriptor, piece.data(), piece.size());
    if (bytes < 0 && errno == EINTR) {
      continue;
    }
    if (bytes < 0) {
      const int cause = errno;
      ::close(descriptor);
      throw IoError(fmt::format("{}: cannot read to compute its digest: {}", file.string(), std::strerror(cause)));
    }
    if (bytes == 0) {
      ::close(descriptor);
      return digest.hex();
    }
    digest.update(piece.data(), static_cast<std::size_t>(bytes));
  }
}

}  // namespace espalier
