// SPDX-License-Identifier: Apache-2.0
#include "model/strict_json.h"

#include <spdlog/fmt/fmt.h>

namespace espalier::model {
namespace {

constexpr std::size_t kShownBytes = 120;
// The parser holds the token at hand, and while it grows or goes into an error's text, up to ten times its bytes.
constexpr std::size_t kMaxTokenBytes = 1 << 20;

/// What the parser would not refuse: tokens that cost more memory than any name or number needs, and a zero byte, which
/// it takes for the end of its input, letting pass whatever follows.
void check_tokens(std::string_view text, const StrictJson& form) {
  bool is_in_text = false;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char letter = text[i];
    if (letter == '\0') {
      form.unexpected(fmt::format("a zero byte at byte {}", i));
    }
    if (is_in_text && letter == '\\') {
      ++i;
    } else if (letter == '"') {
      is_in_text = !is_in_text;
      begin = i + 1;
    } else if (!is_in_text && std::string_view("{}[]:, \t\r\n").find(letter) != std::string_view::npos) {
      begin = i + 1;
    }
    if (i + 1 - begin > kMaxTokenBytes) {
      form.unexpected(fmt::format("more than {} bytes of text or number at byte {}", kMaxTokenBytes, begin));
    }
  }
}

}  // namespace

std::string shown(std::string_view text) {
  std::string result = "\"";
  for (const char letter : text.substr(0, kShownBytes)) {
    const auto byte = static_cast<unsigned char>(letter);
    if (byte >= 0x20 && byte < 0x7F) {
      result += letter;
    } else {
      result += fmt::format("\\x{:02x}", byte);
    }
  }
  return result + (text.size() > kShownBytes ? "...\"" : "\"");
}

bool StrictJson::parse_error(std::size_t position, const std::string& last_token,
                             const nlohmann::detail::exception& /*error*/) {
  // The token ends where the error is; its beginning may be megabytes before.
  const std::size_t hidden = last_token.size() > kShownBytes ? last_token.size() - kShownBytes : 0;
  unexpected(
      fmt::format("broken JSON at byte {}, after {}", position, shown(std::string_view(last_token).substr(hidden))));
}

void read_strictly(std::string_view text, StrictJson& form) {
  if (text.empty() || text.front() != '{') {
    form.unexpected(text.empty() ? "nothing" : "a beginning other than '{': " + shown(text.substr(0, 1)));
  }
  check_tokens(text, form);
  nlohmann::json::sax_parse(text.data(), text.data() + text.size(), &form);
}

}  // namespace espalier::model
