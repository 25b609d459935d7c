// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/sealed_json.h"

#include <spdlog/fmt/fmt.h>

#include "common/check.h"
#include "common/digest.h"
#include "common/error.h"

namespace espalier::checkpoint {
namespace {

// On disk, see docs/checkpoint_format.md. Never change.
constexpr std::string_view kSealKey = "xxh3_128";
constexpr std::string_view kBeforeDigest = "{\"xxh3_128\":\"";
constexpr std::string_view kAfterDigest = "\",\n";
constexpr std::size_t kDigestCharacters = 32;
constexpr std::size_t kSealCharacters = kBeforeDigest.size() + kDigestCharacters + kAfterDigest.size();

}  // namespace

std::string seal(const nlohmann::json& object) {
  ESPALIER_CHECK(object.is_object() && !object.empty() && !object.contains(kSealKey), "cannot be sealed");
  const std::string rest = object.dump(1).substr(2) + "\n";  // without "{\n": the seal's line opens the object
  return fmt::format("{}{}{}{}", kBeforeDigest, digest_of(rest), kAfterDigest, rest);
}

nlohmann::json unseal(std::string_view text, const std::filesystem::path& file) {
  if (text.size() <= kSealCharacters || !text.starts_with(kBeforeDigest) ||
      text.substr(kSealCharacters - kAfterDigest.size(), kAfterDigest.size()) != kAfterDigest) {
    throw IoError(
        fmt::format("{}: expected a first line {}<32 hex digits>\", found {} bytes that do not start so; "
                    "the file is damaged or was not written by Espalier",
                    file.string(), kBeforeDigest, text.size()));
  }
  const std::string_view expected = text.substr(kBeforeDigest.size(), kDigestCharacters);
  const std::string found = digest_of(text.substr(kSealCharacters));
  if (expected != found) {
    throw IoError(fmt::format("{}: expected XXH3-128 {} after the first line, found {}; the file was damaged or edited",
                              file.string(), expected, found));
  }
  nlohmann::json object = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) throw IoError(fmt::format("{}: expected a JSON object, found none", file.string()));
  object.erase(std::string(kSealKey));
  return object;
}

}  // namespace espalier::checkpoint
