// SPDX-License-Identifier: Apache-2.0
// Reads JSON of a known form from untrusted files, event by event: nothing is built that the form does not ask for,
// what comes unexpected is refused at once (so depth is bounded by the form), and equal keys are seen, which a JSON
// tree would swallow.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "common/error.h"

namespace espalier::model {

/// For messages: in quotation marks, cut where long, everything but printable ASCII escaped.
std::string shown(std::string_view text);

/// Refuses every event; a form overrides what it accepts.
class StrictJson : public nlohmann::json_sax<nlohmann::json> {
 public:
  /// Throws: refusal(found).
  [[noreturn]] void unexpected(std::string_view found) const { throw refusal(found); }

  bool null() override { unexpected("null"); }
  bool boolean(bool /*value*/) override { unexpected("a boolean"); }
  bool number_integer(number_integer_t value) override { unexpected(std::to_string(value)); }
  bool number_unsigned(number_unsigned_t value) override { unexpected(std::to_string(value)); }
  bool number_float(number_float_t /*value*/, const string_t& text) override {
    unexpected("the number " + shown(text));
  }
  bool string(string_t& value) override { unexpected("the text " + shown(value)); }
  bool binary(binary_t& /*value*/) override { unexpected("binary data"); }
  bool start_object(std::size_t /*num_elements*/) override { unexpected("an object"); }
  bool key(string_t& name) override { unexpected("the key " + shown(name)); }
  bool end_object() override { unexpected("the end of the object"); }
  bool start_array(std::size_t /*num_elements*/) override { unexpected("a list"); }
  bool end_array() override { unexpected("the end of the list"); }
  bool parse_error(std::size_t position, const std::string& last_token,
                   const nlohmann::detail::exception& error) override;

 private:
  /// Says where the form stands, what it expected there, and what to do.
  [[nodiscard]] virtual ConfigError refusal(std::string_view found) const = 0;
};

/// Feeds one JSON object, and nothing but white space after it, to `form`. No text or number may be longer than 1 MiB.
/// Throws: the form's ConfigError for anything else.
void read_strictly(std::string_view text, StrictJson& form);

}  // namespace espalier::model
