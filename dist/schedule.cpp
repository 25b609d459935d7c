// SPDX-License-Identifier: Apache-2.0
#include "dist/schedule.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>

#include "common/check.h"
#include "common/error.h"

namespace espalier::dist {

namespace {

constexpr std::array<std::pair<ScheduleKind, std::string_view>, 2> kNames = {
    {{ScheduleKind::k1F1B, "1f1b"}, {ScheduleKind::kGPipe, "gpipe"}}};

}  // namespace

ScheduleKind schedule_kind_from(std::string_view name) {
  std::vector<std::string_view> known;
  for (const auto& [kind, known_name] : kNames) {
    if (name == known_name) {
      return kind;
    }
    known.push_back(known_name);
  }
  throw ConfigError(fmt::format("parallel.schedule: expected one of {}, found \"{}\"", fmt::join(known, ", "), name));
}

std::vector<Action> plan_schedule(ScheduleKind kind, int num_stages, int stage_index, int num_micro_batches) {
  std::vector<Action> actions;
  int next_forward = 0;
  const auto forward = [&] { actions.push_back({ActionKind::kForward, next_forward++}); };
  // The forwards before the first backward are the most that are ever kept.
  const int num_warm_up = max_live_micro_batches(kind, num_stages, stage_index, num_micro_batches);
  while (next_forward < num_warm_up) {
    forward();
  }
  for (int micro_batch = 0; micro_batch < num_micro_batches; ++micro_batch) {
    actions.push_back({ActionKind::kBackward, micro_batch});
    if (next_forward < num_micro_batches) {
      forward();
    }
  }
  return actions;
}

int max_live_micro_batches(ScheduleKind kind, int num_stages, int stage_index, int num_micro_batches) {
  ESPALIER_CHECK(num_stages >= 1 && stage_index >= 0 && stage_index < num_stages && num_micro_batches >= 0,
                 "stage {} of {}, {} micro-batches", stage_index, num_stages, num_micro_batches);
  return kind == ScheduleKind::k1F1B ? std::min(num_stages - stage_index, num_micro_batches) : num_micro_batches;
}

}  // namespace espalier::dist
