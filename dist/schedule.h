// SPDX-License-Identifier: Apache-2.0
// Plans which stage does what, in which order. Pure: no tensors, no ranks, no clocks. train/StageExecutor interprets
// the plan.
//   1f1b:  Narayanan et al., "Efficient large-scale language model training on GPU clusters", SC 2021 (PipeDream-flush)
//   gpipe: Huang et al., "GPipe", NeurIPS 2019
#pragma once

#include <string_view>
#include <vector>

namespace espalier::dist {

enum class ScheduleKind { k1F1B, kGPipe };
/// "1f1b", "gpipe".  Throws: ConfigError naming the known kinds.
ScheduleKind schedule_kind_from(std::string_view name);

enum class ActionKind { kForward, kBackward };

/// One piece of work of one stage. `micro_batch` counts within the replica, from 0.
struct Action {
  ActionKind kind = ActionKind::kForward;
  int micro_batch = 0;
  friend bool operator==(const Action&, const Action&) = default;
};

/// The action list of one stage for one optimizer step. For each action in order the executor
///   1. receives what the action reads: a forward, the activation of its micro-batch from stage - 1 (not on the first);
///      a backward, the gradient of its micro-batch from stage + 1 (not on the last);
///   2. computes;
///   3. sends the result on: a forward to stage + 1 (not from the last), a backward to stage - 1 (not from the first).
/// No plan deadlocks under either of these rules (tests/unit/dist/schedule_test.cpp executes all of them):
///   - posted sends: step 3 starts the send and goes on; the Works are kept until the end of the step. Receives may
///     block.
///   - paired rendezvous: the send of an action and the receive of the next one are started together, then both are
///     waited for.
/// Waiting for a send before the next receive is started is wrong: in 1f1b two neighbours would send to each other.
/// Activations travel on Channel::kForward, gradients on Channel::kBackward; backwards come in ascending order of
/// micro-batches. Requires: num_stages >= 1, 0 <= stage_index < num_stages, num_micro_batches >= 0.
std::vector<Action> plan_schedule(ScheduleKind kind, int num_stages, int stage_index, int num_micro_batches);

/// Most micro-batches whose forward is kept for a backward at one time on this stage: 1f1b min(num_stages -
/// stage_index, M), gpipe M.
int max_live_micro_batches(ScheduleKind kind, int num_stages, int stage_index, int num_micro_batches);

}  // namespace espalier::dist
