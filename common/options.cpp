// SPDX-License-Identifier: Apache-2.0
// The table itself: values, their declaration, and the lookup of keys. Reading of files and flags is in
// options_read.cpp, what is printed in options_print.cpp.
#include "common/options.h"

#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "common/check.h"
#include "common/error.h"
#include "common/options_detail.h"

namespace espalier {
namespace {

using IntegerList = std::vector<std::int64_t>;
using TextList = std::vector<std::string>;

template <typename Number>
std::optional<Number> parse_number(std::string_view text) {
  Number value{};
  const char* end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, value);
  return result.ec == std::errc() && result.ptr == end ? std::optional(value) : std::nullopt;
}

/// One specialisation per type: what it is called, how it is read and written, and which part of it bounds and choices
/// speak of.
template <typename Value>
struct ValueTraits;

template <>
struct ValueTraits<bool> {
  static constexpr std::string_view kName = "bool";
  static std::optional<bool> parse(const std::string& text) { return detail::parse_bool(text); }
  static std::string format(bool value) { return value ? "true" : "false"; }
};
template <>
struct ValueTraits<std::int64_t> {
  static constexpr std::string_view kName = "integer";
  static std::optional<std::int64_t> parse(const std::string& text) { return parse_number<std::int64_t>(text); }
  static std::string format(std::int64_t value) { return fmt::to_string(value); }
};
template <>
struct ValueTraits<std::uint64_t> {
  static constexpr std::string_view kName = "unsigned integer";
  static std::optional<std::uint64_t> parse(const std::string& text) { return parse_number<std::uint64_t>(text); }
  static std::string format(std::uint64_t value) { return fmt::to_string(value); }
};
template <>
struct ValueTraits<double> {
  static constexpr std::string_view kName = "number";
  static std::optional<double> parse(const std::string& text) {
    const auto value = parse_number<double>(text);
    return value && std::isfinite(*value) ? value : std::nullopt;
  }
  static std::string format(double value) { return fmt::format("{}", value); }  // shortest text that reads back
};
template <>
struct ValueTraits<std::string> {
  static constexpr std::string_view kName = "text";
  static std::optional<std::string> parse(const std::string& text) { return text; }
  static std::string format(const std::string& value) { return value; }
};
template <typename Element>
struct ValueTraits<std::vector<Element>> {
  static constexpr std::string_view kName = std::same_as<Element, std::string> ? "list of texts" : "list of integers";
  static std::optional<std::vector<Element>> parse(const std::string& text) {
    std::vector<Element> values;
    for (std::size_t begin = 0; !text.empty() && begin <= text.size();) {
      const std::size_t end = std::min(text.find(',', begin), text.size());
      const std::string element(detail::trimmed(std::string_view(text).substr(begin, end - begin)));
      auto value = ValueTraits<Element>::parse(element);
      if (element.empty() || !value) {
        return std::nullopt;
      }
      values.push_back(*std::move(value));
      begin = end + 1;
    }
    return values;
  }
  static std::string format(const std::vector<Element>& value) { return fmt::format("{}", fmt::join(value, ",")); }
};

template <OptionValue Value>
class BoundOption final : public Option {
 public:
  BoundOption(std::string key, Value& variable) : Option(std::move(key)), variable_(variable) {}
  [[nodiscard]] std::string value_text() const override { return ValueTraits<Value>::format(variable_); }

 protected:
  bool store(const std::string& text) override {
    auto value = ValueTraits<Value>::parse(text);
    if (!value || !is_allowed(*value)) {
      return false;
    }
    variable_ = *std::move(value);
    return true;
  }
  [[nodiscard]] bool is_default_allowed() const override {
    // An empty text may stand for "not given".
    return is_allowed(variable_) || value_text().empty();
  }
  [[nodiscard]] std::string_view type_text() const override { return ValueTraits<Value>::kName; }

 private:
  [[nodiscard]] bool is_allowed(const Value& value) const {
    if constexpr (std::same_as<Value, IntegerList> || std::same_as<Value, TextList>) {
      return std::all_of(value.begin(), value.end(), [this](const auto& element) { return allows_one(element); });
    } else {
      return allows_one(value);
    }
  }
  template <typename Element>
  [[nodiscard]] bool allows_one(const Element& element) const {
    if constexpr (std::same_as<Element, bool>) {
      return true;
    } else if constexpr (std::same_as<Element, std::string>) {
      return allows(element);
    } else {
      return allows(static_cast<double>(element));
    }
  }

  Value& variable_;
};

}  // namespace

Option& Option::unit(std::string text) {
  unit_ = std::move(text);
  return *this;
}
Option& Option::help(std::string text) {
  help_ = std::move(text);
  return *this;
}
Option& Option::at_least(double value) {
  lowest_ = Bound{value, /*is_open=*/false};
  return checked();
}
Option& Option::at_most(double value) {
  highest_ = Bound{value, /*is_open=*/false};
  return checked();
}
Option& Option::above(double value) {
  lowest_ = Bound{value, /*is_open=*/true};
  return checked();
}
Option& Option::below(double value) {
  highest_ = Bound{value, /*is_open=*/true};
  return checked();
}
Option& Option::choices(std::vector<std::string> values) {
  choices_ = std::move(values);
  return checked();
}
Option& Option::required() {
  is_required_ = true;
  return *this;
}

Option& Option::checked() {
  ESPALIER_CHECK(is_default_allowed(), "the default \"{}\" of {} must be {}", value_text(), key_, expectation());
  return *this;
}

bool Option::allows(double value) const {
  const bool is_high_enough = !lowest_ || (lowest_->is_open ? value > lowest_->value : value >= lowest_->value);
  const bool is_low_enough = !highest_ || (highest_->is_open ? value < highest_->value : value <= highest_->value);
  return is_high_enough && is_low_enough;
}

bool Option::allows(const std::string& text) const {
  return choices_.empty() || std::find(choices_.begin(), choices_.end(), text) != choices_.end();
}

void Option::assign(const std::string& text, OptionSource source, const std::string& origin) {
  if (!store(text)) {
    // A flag is its own key.
    const auto place = source == OptionSource::kFlag ? origin : fmt::format("{}: {}", origin, key_);
    throw ConfigError(fmt::format("{}: expected {}, found \"{}\"", place, expectation(), text));
  }
  source_ = source;
  origin_ = origin;
}

std::string_view Option::section() const {
  const auto dot = key_.rfind('.');
  return dot == key_.npos ? std::string_view() : std::string_view(key_).substr(0, dot);
}

std::string_view Option::leaf() const {
  return std::string_view(key_).substr(key_.rfind('.') + 1);
}

std::string Option::range_text() const {
  std::vector<std::string> parts;
  if (lowest_) {
    parts.push_back(fmt::format("{} {}", lowest_->is_open ? "above" : "at least", lowest_->value));
  }
  if (highest_) {
    parts.push_back(fmt::format("{} {}", highest_->is_open ? "below" : "at most", highest_->value));
  }
  return fmt::format("{}", fmt::join(parts, " and "));
}

std::string Option::expectation() const {
  const bool is_list = type_text().starts_with("list");
  if (!choices_.empty()) {
    return fmt::format("{} {}", is_list ? "a list out of" : "one of", fmt::join(choices_, ", "));
  }
  if (is_bool_) {
    return "true or false";
  }
  const char* article = type_text() == "integer" || type_text() == "unsigned integer" ? "an" : "a";
  const std::string range = range_text();
  return fmt::format("{} {}{}{}", article, type_text(), range.empty() ? "" : is_list ? ", each " : ", ", range);
}

template <OptionValue Value>
Option& OptionTable::add(std::string key, Value& variable) {
  Option& option = insert(std::make_unique<BoundOption<Value>>(std::move(key), variable));
  option.is_bool_ = std::same_as<Value, bool>;
  return option;
}
template Option& OptionTable::add(std::string, bool&);
template Option& OptionTable::add(std::string, std::int64_t&);
template Option& OptionTable::add(std::string, std::uint64_t&);
template Option& OptionTable::add(std::string, double&);
template Option& OptionTable::add(std::string, std::string&);
template Option& OptionTable::add(std::string, IntegerList&);
template Option& OptionTable::add(std::string, TextList&);

Option& OptionTable::insert(std::unique_ptr<Option> option) {
  const std::string& key = option->key();
  ESPALIER_CHECK(key.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_.") == std::string::npos &&
                     !option->leaf().empty() && !key.starts_with('.'),
                 "an option's key is \"section.name\", or \"name\" of a flag, in lower case, found \"{}\"", key);
  ESPALIER_CHECK(find(key) == nullptr, "the option {} is declared twice", key);
  option->default_text_ = option->value_text();
  options_.push_back(std::move(option));
  return *options_.back();
}

const Option* OptionTable::find(std::string_view key) const {
  const auto found =
      std::find_if(options_.begin(), options_.end(), [&](const auto& each) { return each->key() == key; });
  return found == options_.end() ? nullptr : found->get();
}

std::vector<OptionTable::Section> OptionTable::sections() const {
  std::vector<Section> result;
  for (const auto& option : options_) {
    auto found = std::find_if(result.begin(), result.end(),
                              [&](const Section& section) { return section.name == option->section(); });
    if (found == result.end()) {
      found = result.insert(result.end(), Section{option->section(), {}});
    }
    found->options.push_back(option.get());
  }
  return result;
}

void OptionTable::check_required() const {
  std::vector<std::string> missing;
  for (const auto& option : options_) {
    if (option->is_required_ && option->source() == OptionSource::kDefault) {
      missing.push_back(fmt::format("  --{} ({}): {}", option->key(), option->expectation(), option->help_));
    }
  }
  if (!missing.empty()) {
    throw ConfigError(fmt::format("expected a value, by file or flag, for {}; found none:\n{}",
                                  missing.size() == 1 ? "one more option" : "these options", fmt::join(missing, "\n")));
  }
}

}  // namespace espalier
