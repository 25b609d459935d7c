// SPDX-License-Identifier: Apache-2.0
// Every text that is made from the option table: --print-config, the canonical text, --help and docs/options.md.
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <map>

#include "common/options.h"
#include "common/options_detail.h"

namespace espalier {
namespace {

constexpr std::size_t kHelpColumns = 100;

/// Appends `text` word by word, each line indented and at most kHelpColumns wide where words allow.
void append_wrapped(std::string& out, std::string_view text, std::size_t indent) {
  std::string line;
  const auto flush = [&] {
    if (!line.empty()) {
      out += std::string(indent, ' ') + line + '\n';
      line.clear();
    }
  };
  while (!(text = detail::trimmed(text)).empty()) {
    const auto word = text.substr(0, text.find_first_of(" \n\t"));
    text.remove_prefix(word.size());
    if (!line.empty() && indent + line.size() + 1 + word.size() > kHelpColumns) {
      flush();
    }
    line += line.empty() ? "" : " ";
    line += word;
  }
  flush();
}

/// Options without a section are flags of one command, and stand before the first header.
std::string section_header(std::string_view section) {
  return section.empty() ? std::string() : fmt::format("[{}]\n", section);
}

/// INI text of the scopes, section by section as first given.
std::string scopes_text(const std::vector<ScopedValue>& values, bool has_origins) {
  std::vector<std::string_view> sections;
  for (const ScopedValue& value : values) {
    if (std::find(sections.begin(), sections.end(), value.section) == sections.end()) {
      sections.push_back(value.section);
    }
  }
  std::string out;
  for (const std::string_view section : sections) {
    out += (has_origins ? "\n" : "") + section_header(section);
    for (const ScopedValue& value : values) {
      if (value.section == section) {
        out += fmt::format("{} = {}{}\n", value.key, detail::ini_value(value.text),
                           has_origins ? "  # " + value.origin : "");
      }
    }
  }
  return out;
}

std::string scope_section(const OptionScope& scope) {
  return scope.is_named ? scope.name + ".NAME" : scope.name;
}

std::string markdown_cell(std::string text) {
  for (std::size_t at = 0; (at = text.find('|', at)) != std::string::npos; at += 2) {
    text.insert(at, 1, '\\');
  }
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

}  // namespace

std::string OptionTable::print_config() const {
  std::string out;
  for (const Section& section : sections()) {
    out += (out.empty() ? "" : "\n") + section_header(section.name);
    for (const Option* option : section.options) {
      out += fmt::format("{} = {}  # {}\n", option->leaf(), detail::ini_value(option->value_text()), option->origin());
    }
  }
  return out + scopes_text(scoped_values_, /*has_origins=*/true);
}

std::string OptionTable::canonical_text() const {
  std::map<std::string_view, std::map<std::string_view, std::string>> sorted;
  for (const auto& option : options_) {
    sorted[option->section()][option->leaf()] = detail::ini_value(option->value_text());
  }
  std::string out;
  for (const auto& [section, values] : sorted) {
    out += section_header(section);
    for (const auto& [leaf, value] : values) {
      out += fmt::format("{} = {}\n", leaf, value);
    }
  }
  return out + scopes_text(scoped_values_, /*has_origins=*/false);
}

std::string OptionTable::help() const {
  std::string out;
  for (const Section& section : sections()) {
    out += (out.empty() ? "" : "\n") + section_header(section.name);
    for (const Option* option : section.options) {
      std::vector<std::string> facts;
      if (!option->unit_.empty()) {
        facts.push_back(option->unit_);
      }
      if (!option->choices_.empty()) {
        facts.push_back(fmt::format("{}", fmt::join(option->choices_, " | ")));
      } else if (const auto range = option->range_text(); !range.empty()) {
        facts.push_back(range);
      }
      facts.push_back(option->is_required_            ? "required"
                      : option->default_text_.empty() ? "default: empty"
                                                      : "default: " + option->default_text_);
      append_wrapped(out, fmt::format("--{} <{}> ({})", option->key(), option->type_text(), fmt::join(facts, "; ")), 2);
      append_wrapped(out, option->help_, 6);
    }
  }
  for (const OptionScope& scope : scopes_) {
    out += "\n" + section_header(scope_section(scope));
    append_wrapped(out,
                   fmt::format("--{}.<key> for keys {}", scope_section(scope), fmt::join(scope.key_prefixes, ", ")), 2);
    append_wrapped(out, scope.help, 6);
  }
  return out;
}

std::string OptionTable::markdown() const {
  std::string out =
      "# Options\n\n"
      "Written from the option tables of the program; do not edit by hand. An option `section.key` is the flag "
      "`--section.key=value`\n"
      "and the line `key = value` below `[section]` in a configuration file. A default gives way to the file, the file "
      "to the flag.\n"
      "Lists are written `a,b,c`.\n";
  for (const Section& section : sections()) {
    out += fmt::format(
        "\n## {}\n\n| key | type | default | allowed | unit | meaning |\n| --- | --- | --- | --- | --- | --- |\n",
        section.name);
    for (const Option* option : section.options) {
      const std::string standard = option->is_required_            ? "required"
                                   : option->default_text_.empty() ? "empty"
                                                                   : fmt::format("`{}`", option->default_text_);
      const std::string allowed =
          option->choices_.empty() ? option->range_text() : fmt::format("`{}`", fmt::join(option->choices_, "`, `"));
      out += fmt::format("| `{}` | {} | {} | {} | {} | {} |\n", option->key(), option->type_text(),
                         markdown_cell(standard), markdown_cell(allowed), markdown_cell(option->unit_),
                         markdown_cell(option->help_));
    }
  }
  for (const OptionScope& scope : scopes_) {
    out += fmt::format("\n## {}\n\n{} Keys: `{}`.\n", scope_section(scope), scope.help,
                       fmt::join(scope.key_prefixes, "`, `"));
  }
  return out;
}

}  // namespace espalier
