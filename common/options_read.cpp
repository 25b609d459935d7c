// SPDX-License-Identifier: Apache-2.0
// Reads INI text and command-line flags into the option table. Both are read by hand: the file reader must know the
// line of every value, and a bool flag may stand bare or take the next word (docs/adr/0002-options.md).
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "common/check.h"
#include "common/error.h"
#include "common/options.h"
#include "common/options_detail.h"

namespace espalier {
namespace {

constexpr std::string_view kBlank = " \t\r\n\v\f";

/// Levenshtein's distance.
std::size_t edit_distance(std::string_view left, std::string_view right) {
  std::vector<std::size_t> row(right.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (std::size_t i = 0; i < left.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < right.size(); ++j) {
      const std::size_t replaced = diagonal + (left[i] == right[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, diagonal + 1, row[j] + 1});
    }
  }
  return row.back();
}

std::string_view leaf_of(std::string_view key) {
  return key.substr(key.rfind('.') + 1);
}

/// A wrong or forgotten section costs as much as two wrong letters, however long its name.
std::size_t key_distance(std::string_view found, std::string_view known) {
  return std::min(edit_distance(found, known), 2 + edit_distance(leaf_of(found), leaf_of(known)));
}

/// The value behind '=': a quoted text, or the bare text before a comment.
std::string parse_ini_value(std::string_view text, const std::string& origin) {
  if (!text.starts_with('"')) {
    for (std::size_t i = 0; i < text.size(); ++i) {
      const bool is_comment = (text[i] == '#' || text[i] == ';') && (i == 0 || kBlank.find(text[i - 1]) != kBlank.npos);
      if (is_comment) {
        text = text.substr(0, i);
      }
    }
    return std::string(detail::trimmed(text));
  }
  std::string value;
  for (std::size_t i = 1; i < text.size(); ++i) {
    if (text[i] == '"') {
      const auto rest = detail::trimmed(text.substr(i + 1));
      if (!rest.empty() && rest[0] != '#' && rest[0] != ';') {
        throw ConfigError(
            fmt::format("{}: expected nothing but a comment behind the closing quote, found \"{}\"", origin, rest));
      }
      return value;
    }
    if (text[i] == '\\' && i + 1 < text.size()) {
      const char escaped = text[++i];
      value += escaped == 'n' ? '\n' : escaped == 't' ? '\t' : escaped == 'r' ? '\r' : escaped;
    } else {
      value += text[i];
    }
  }
  throw ConfigError(fmt::format("{}: expected a closing quote, found the end of the line", origin));
}

}  // namespace

std::string_view detail::trimmed(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(kBlank);
  return begin == text.npos ? std::string_view() : text.substr(begin, text.find_last_not_of(kBlank) + 1 - begin);
}

std::optional<bool> detail::parse_bool(std::string_view text) {
  if (text == "true" || text == "yes" || text == "on" || text == "1") {
    return true;
  }
  if (text == "false" || text == "no" || text == "off" || text == "0") {
    return false;
  }
  return std::nullopt;
}

std::string detail::ini_value(const std::string& value) {
  const bool is_bare = value.find_first_of("\"\\#;\n\r\t\v\f") == std::string::npos && trimmed(value) == value;
  if (is_bare) {
    return value;
  }
  std::string quoted = "\"";
  for (const char letter : value) {
    if (letter == '"' || letter == '\\') {
      quoted += '\\';
    }
    quoted += letter == '\n' ? "\\n" : letter == '\t' ? "\\t" : letter == '\r' ? "\\r" : std::string(1, letter);
  }
  return quoted + '"';
}

Option& OptionTable::lookup(const std::string& key, const std::string& origin) {
  ESPALIER_CHECK(!options_.empty(), "an option table without options reads {}", key);
  const auto nearest = std::min_element(options_.begin(), options_.end(), [&](const auto& left, const auto& right) {
    return key_distance(key, left->key()) < key_distance(key, right->key());
  });
  if ((*nearest)->key() != key) {
    throw ConfigError(fmt::format("{}: expected a known option, found \"{}\"; the nearest is \"{}\" (--help lists all)",
                                  origin, key, (*nearest)->key()));
  }
  return **nearest;
}

void OptionTable::check_section(const std::string& name, const std::string& origin) const {
  std::string_view nearest;
  std::size_t nearest_distance = 0;
  for (const Section& section : sections()) {
    const std::size_t distance = edit_distance(name, section.name);
    // [peft] may head "lst.reduction = 8".
    if (distance == 0 || section.name.starts_with(name + ".")) {
      return;
    }
    if (nearest.empty() || distance < nearest_distance) {
      nearest = section.name;
      nearest_distance = distance;
    }
  }
  throw ConfigError(fmt::format("{}: expected a known section, found [{}]; the nearest is [{}] (--help lists all)",
                                origin, name, nearest));
}

void OptionTable::read_text(std::string_view text, const std::string& name) {
  std::string section;
  std::map<std::string, std::string> seen;  // key -> origin
  for (int line_number = 1; !text.empty(); ++line_number) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const auto line = detail::trimmed(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    const auto origin = fmt::format("{}:{}", name, line_number);
    if (line.empty() || line[0] == '#' || line[0] == ';') {
      continue;
    }
    if (line[0] == '[') {
      const std::size_t close = line.find(']');
      const auto rest = close == line.npos ? line : detail::trimmed(line.substr(close + 1));
      if (!rest.empty() && rest[0] != '#' && rest[0] != ';') {
        throw ConfigError(fmt::format("{}: expected [section], found \"{}\"", origin, line));
      }
      section = detail::trimmed(line.substr(1, close - 1));
      if (scope_of(section + ".") == nullptr) {
        check_section(section, origin);
      }
      continue;
    }
    const std::size_t equals = line.find('=');
    if (equals == line.npos) {
      throw ConfigError(fmt::format("{}: expected \"key = value\", found \"{}\"", origin, line));
    }
    const std::string leaf(detail::trimmed(line.substr(0, equals)));
    const std::string key = section.empty() ? leaf : fmt::format("{}.{}", section, leaf);
    const OptionScope* scope = scope_of(key);
    ScopedValue scoped = scope != nullptr ? parse_scoped(*scope, key, origin) : ScopedValue{};
    Option& option = lookup(scope != nullptr ? scoped.key : key, origin);
    if (const auto [first, is_new] = seen.emplace(key, origin); !is_new) {
      throw ConfigError(fmt::format("{}: expected each option once, found {} again after {}; remove one of the two",
                                    origin, key, first->second));
    }
    std::string text_of_value = parse_ini_value(detail::trimmed(line.substr(equals + 1)), origin);
    if (scope != nullptr) {
      scoped.text = std::move(text_of_value);
      keep(std::move(scoped));
    } else {
      option.assign(text_of_value, OptionSource::kFile, origin);
    }
  }
}

void OptionTable::read_flags(const std::vector<std::string>& arguments) {
  std::set<std::string> seen;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    if (!word.starts_with("--")) {
      throw ConfigError(fmt::format("expected a flag (--section.key=value), found \"{}\"", word));
    }
    const std::size_t equals = word.find('=');
    const std::string flag = word.substr(0, equals);
    const std::string key = flag.substr(2);
    const OptionScope* scope = scope_of(key);
    ScopedValue scoped = scope != nullptr ? parse_scoped(*scope, key, flag) : ScopedValue{};
    Option& option = lookup(scope != nullptr ? scoped.key : key, flag);
    if (!seen.insert(flag).second) {
      throw ConfigError(fmt::format("{}: expected each flag once, found it again; remove one of the two", flag));
    }
    const auto take = [&](const std::string& text) {
      if (scope == nullptr) {
        option.assign(text, OptionSource::kFlag, flag);
        return;
      }
      scoped.text = text;
      scoped.source = OptionSource::kFlag;
      keep(std::move(scoped));
    };
    const bool has_next = i + 1 < arguments.size();
    if (equals != std::string::npos) {
      take(word.substr(equals + 1));
    } else if (option.is_bool_) {
      const bool takes_next = has_next && detail::parse_bool(arguments[i + 1]).has_value();
      take(takes_next ? arguments[++i] : "true");
    } else if (has_next && !arguments[i + 1].starts_with("--")) {
      take(arguments[++i]);
    } else {
      throw ConfigError(
          fmt::format("{}: expected {}, found no value; write {}=VALUE", flag, option.expectation(), flag));
    }
  }
}

}  // namespace espalier
