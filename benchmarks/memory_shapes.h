// SPDX-License-Identifier: Apache-2.0
// The models of the memory table, from their published shapes, and the methods that each is measured with.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "peft/method.h"

namespace espalier::benchmarks {

inline const std::string kScoresKept = ", scores kept";

struct Shape {
  nlohmann::json config;
  std::int64_t rows = 0, tokens = 0, target_tokens = 0;
};

/// In the order in which they are measured.
std::vector<std::pair<std::string, Shape>> shapes();
std::int64_t& num_layers(nlohmann::json& config);

struct Row {
  std::string name;
  peft::MethodConfig config;
  bool keeps_scores = false;  ///< attention by the slow twin, as frameworks compute it that keep their scores
};

std::vector<Row> rows_of(const std::string& model);

model::Backbone plan(const Shape& shape, bool keeps_scores);

}  // namespace espalier::benchmarks
