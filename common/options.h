// SPDX-License-Identifier: Apache-2.0
// The option table: an option is declared once, beside the struct that uses it, with unit, default, range and consequence. From
// the table come the command-line flags (--train.learning_rate), the INI keys ([train] learning_rate), --help, --print-config
// with provenance, the errors and docs/options.md. Precedence: default < file < flag.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace espalier {

enum class OptionSource { kDefault, kFile, kFlag };

/// One declared option: a dotted key bound to a variable. Setters chain: table.add("a.b", x).unit("bytes").at_least(1).help("...").
class Option {
 public:
  virtual ~Option() = default;
  Option& unit(std::string text);
  Option& help(std::string text);
  Option& at_least(double value);
  Option& at_most(double value);
  Option& above(double value);  ///< exclusive lower bound
  Option& below(double value);  ///< exclusive upper bound
  /// The only texts allowed.
  Option& choices(std::vector<std::string> values);
  /// Must be given by file or flag.
  Option& required();

  [[nodiscard]] const std::string& key() const { return key_; }
  [[nodiscard]] OptionSource source() const { return source_; }
  /// "default", "run.ini:12" or "--train.seed".
  [[nodiscard]] const std::string& origin() const { return origin_; }
  /// The value as text; parses back to the same value.
  [[nodiscard]] virtual std::string value_text() const = 0;

 protected:
  friend class OptionTable;
  explicit Option(std::string key) : key_(std::move(key)) {}
  /// Parses and stores. Throws: ConfigError that names key, origin, what was expected and what was found.
  virtual void assign(const std::string& text, const std::string& origin) = 0;
  [[nodiscard]] virtual std::string type_text() const = 0;
  void check_range(double value, const std::string& origin) const;
  void check_choice(const std::string& text, const std::string& origin) const;

  std::string key_, unit_, help_, default_text_, origin_ = "default";
  std::vector<std::string> choices_;
  double lowest_, highest_;
  bool lowest_is_open_ = false, highest_is_open_ = false, has_lowest_ = false, has_highest_ = false, is_required_ = false;
  OptionSource source_ = OptionSource::kDefault;
};

/// Thread: not shared.
class OptionTable {
 public:
  /// Binds `key` to `variable`, whose present value is the default. The variable must outlive the table's use.
  /// Types: bool, int64_t, uint64_t, double, std::string, std::filesystem::path, std::vector<std::int64_t> ("1,2,5" or ""),
  /// std::vector<std::string> ("a,b").
  template <typename Value>
  Option& add(std::string key, Value& variable);

  /// Reads an INI file: [section] then key = value; '#' and ';' start comments.
  /// Throws: ConfigError naming file and line for anything unknown (with the nearest known key), malformed, twice or out of range.
  void read_file(const std::filesystem::path& path);
  /// Reads text as if it were a file called `name`.
  void read_text(std::string_view text, const std::string& name);
  /// Reads flags: --section.key=value, --section.key value; a bare bool flag means true. Leaves nothing unread:
  /// unknown words throw. Throws: ConfigError.
  void read_flags(const std::vector<std::string>& arguments);
  /// Throws ConfigError that lists every required option that was not given.
  void check_required() const;

  [[nodiscard]] const Option* find(std::string_view key) const;
  /// INI text of every value, each line with its provenance as a comment; read_text() of it gives the same values.
  [[nodiscard]] std::string print_config() const;
  /// INI text without provenance, sorted: the text whose digest ranks compare.
  [[nodiscard]] std::string canonical_text() const;
  [[nodiscard]] std::string help() const;
  /// docs/options.md.
  [[nodiscard]] std::string markdown() const;

 private:
  Option& insert(std::unique_ptr<Option> option);
  Option& lookup(const std::string& key, const std::string& origin);
  std::vector<std::unique_ptr<Option>> options_;
};

}  // namespace espalier
