// SPDX-License-Identifier: Apache-2.0
// The option table: an option is declared once, beside the struct that uses it, with unit, default, range and
// consequence. From the table come the command-line flags (--train.learning_rate), the INI keys ([train]
// learning_rate), --help, --print-config with provenance, the errors and docs/options.md. Precedence: default < file <
// flag. A part of a run may have values of its own: they stand in a scope ([objective.small] peft.lst.reduction = 16).
#pragma once

#include <concepts>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace espalier {

enum class OptionSource { kDefault, kFile, kFlag };

/// What an option can hold. Lists are written "1,2,5" and "a,b"; "" is the empty list.
template <typename Value>
concept OptionValue = std::same_as<Value, bool> || std::same_as<Value, std::int64_t> ||
    std::same_as<Value, std::uint64_t> || std::same_as<Value, double> || std::same_as<Value, std::string> ||
    std::same_as<Value, std::vector<std::int64_t>> || std::same_as<Value, std::vector<std::string>>;

/// One declared option: a dotted key bound to a variable. Setters chain: table.add("a.b",
/// x).unit("bytes").at_least(1).help("..."). Bounds and choices hold for every element of a list. A default that breaks
/// them is a defect (Throws: InternalError).
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

  /// Stores the value that `text` stands for; false, and nothing stored, if it stands for none or is not allowed.
  virtual bool store(const std::string& text) = 0;
  [[nodiscard]] virtual bool is_default_allowed() const = 0;
  [[nodiscard]] virtual std::string_view type_text() const = 0;

  [[nodiscard]] bool allows(double value) const;
  [[nodiscard]] bool allows(const std::string& text) const;

 private:
  struct Bound {
    double value;
    bool is_open;
  };
  /// Throws: ConfigError that names origin and key, what was expected and what was found.
  void assign(const std::string& text, OptionSource source, const std::string& origin);
  Option& checked();
  [[nodiscard]] std::string_view section() const;
  [[nodiscard]] std::string_view leaf() const;
  [[nodiscard]] std::string range_text() const;
  [[nodiscard]] std::string expectation() const;

  std::string key_, unit_, help_, default_text_, origin_ = "default";
  std::vector<std::string> choices_;
  std::optional<Bound> lowest_, highest_;
  bool is_required_ = false, is_bool_ = false;
  OptionSource source_ = OptionSource::kDefault;
};

/// Sections whose keys are whole keys of other options, with values that hold for a part of the run alone.
struct OptionScope {
  std::string name;                       ///< "objective": sections [objective.NAME], or [objective] if it has no names
  bool is_named = false;                  ///< NAME: letters, digits, '_', '-' and '+'
  std::vector<std::string> key_prefixes;  ///< of the options that may stand there
  std::string help;
};

/// A value that stands in a scope: not read into the option's variable, but kept as text.
struct ScopedValue {
  std::string section;  ///< "objective.small"
  std::string key;      ///< of the option
  std::string text;
  OptionSource source = OptionSource::kFile;
  std::string origin;
};

/// Thread: not shared.
class OptionTable {
 public:
  /// Binds `key` ("section.name", the section may have dots) to `variable`, whose present value is the default.
  /// Requires: the variable outlives the use of the table.  Throws: InternalError if the key is taken or malformed.
  template <OptionValue Value>
  Option& add(std::string key, Value& variable);
  /// From here on the scope's sections and flags (--objective.small.peft.lst.reduction=16) are kept in scoped_values().
  void add_scope(OptionScope scope);

  /// Reads the text of an INI file called `name`: [section] then key = value; '#' and ';' start comments at the begin
  /// of a line and after a space. A value in double quotes is taken as it is, with \" \\ \n \t inside. Throws:
  /// ConfigError naming file and line for anything unknown (with the nearest known key), malformed, twice or out of
  /// range.
  void read_text(std::string_view text, const std::string& name);
  /// Reads flags: --section.key=value, --section.key value; a bare bool flag means true. Leaves nothing unread:
  /// unknown words throw, and so does a flag given twice. Throws: ConfigError.
  void read_flags(const std::vector<std::string>& arguments);
  /// Throws: ConfigError that lists every required option that was not given.
  void check_required() const;
  /// Gives one option a value, as if `origin` had said it. Throws: ConfigError.
  void set(const std::string& key, const std::string& text, OptionSource source, const std::string& origin);
  /// Gives every option the value and the origin of the option of that key in `other`, where there is one.
  void take(const OptionTable& other);

  /// In the order in which they were first given; the last text given for a key counts.
  [[nodiscard]] const std::vector<ScopedValue>& scoped_values() const { return scoped_values_; }
  /// Null if there is no such key.
  [[nodiscard]] const Option* find(std::string_view key) const;
  /// INI text of every value, each line with its provenance as a comment; read_text() of it gives the same values.
  [[nodiscard]] std::string print_config() const;
  /// INI text without provenance, sorted: the text whose digest ranks compare.
  [[nodiscard]] std::string canonical_text() const;
  /// Every option grouped by section, at most 100 columns wide.
  [[nodiscard]] std::string help() const;
  /// docs/options.md.
  [[nodiscard]] std::string markdown() const;

 private:
  struct Section {
    std::string_view name;
    std::vector<const Option*> options;
  };
  Option& insert(std::unique_ptr<Option> option);
  Option& lookup(const std::string& key, const std::string& origin);
  void check_section(const std::string& name, const std::string& origin) const;
  [[nodiscard]] std::vector<Section> sections() const;
  /// The scope that `key` (or a section and a dot) begins with; null: none.
  [[nodiscard]] const OptionScope* scope_of(std::string_view key) const;
  /// Parts a key that begins with `scope` into section and option. Throws: ConfigError.
  [[nodiscard]] ScopedValue parse_scoped(const OptionScope& scope, const std::string& key, const std::string& origin);
  void keep(ScopedValue value);

  std::vector<std::unique_ptr<Option>> options_;
  std::vector<OptionScope> scopes_;
  std::vector<ScopedValue> scoped_values_;
};

}  // namespace espalier
