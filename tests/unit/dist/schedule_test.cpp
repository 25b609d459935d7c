// SPDX-License-Identifier: Apache-2.0
// Executes every plan under the rules that dist/schedule.h names: the executor below knows only plans, messages and
// blocking.
#include "dist/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>

#include "common/error.h"

namespace espalier::dist {
namespace {

using ::testing::HasSubstr;

enum class SendRule {
  kPosted,            ///< a send never blocks
  kPairedRendezvous,  ///< the send of an action and the receive of the next one are started together
  kPlainRendezvous,   ///< a send blocks until its receive is started, which is after the send: the wrong rule
};

/// One stage as a machine: it computes, then offers its result and asks for its next input until both happened.
struct Stage {
  std::vector<Action> plan;
  std::size_t next = 0;          // action to compute next
  bool wants_input = false;      // its receive is started and not yet served
  std::optional<Action> result;  // its send is started and not yet taken
  std::set<int> live;            // micro-batches whose forward is kept
  int max_live = 0;
  std::string error;
};

class Simulation {
 public:
  Simulation(ScheduleKind kind, int num_stages, int num_micro_batches, SendRule rule)
      : kind_(kind), num_micro_batches_(num_micro_batches), rule_(rule), stages_(static_cast<std::size_t>(num_stages)) {
    for (int i = 0; i < num_stages; ++i) {
      stages_[static_cast<std::size_t>(i)].plan = plan_schedule(kind, num_stages, i, num_micro_batches);
      start_receive(i);
    }
  }

  /// Empty when every plan ran to its end; else what went wrong.
  std::string run() {
    bool moves = true;
    while (moves) {
      moves = false;
      for (int i = 0; i < num_stages(); ++i) {
        moves = deliver(i) || moves;
        moves = compute(i) || moves;
      }
    }
    for (int i = 0; i < num_stages(); ++i) {
      const Stage& stage = at(i);
      if (!stage.error.empty()) {
        return stage.error;
      }
      if (stage.next != stage.plan.size() || stage.result.has_value()) {
        return "stage " + std::to_string(i) + " is stuck at action " + std::to_string(stage.next);
      }
      const int bound = max_live_micro_batches(kind_, num_stages(), i, num_micro_batches_);
      if (stage.max_live != bound) {
        return "stage " + std::to_string(i) + " keeps " + std::to_string(stage.max_live) + " micro-batches, not " +
               std::to_string(bound);
      }
      if (!stage.live.empty()) {
        return "stage " + std::to_string(i) + " keeps micro-batches at the end";
      }
    }
    return "";
  }

 private:
  int num_stages() const { return static_cast<int>(stages_.size()); }
  Stage& at(int i) { return stages_[static_cast<std::size_t>(i)]; }
  /// Where the result of `action` goes or, with direction -1, where its input comes from.
  std::optional<int> neighbour(int i, const Action& action, int direction) const {
    const int other = action.kind == ActionKind::kForward ? i + direction : i - direction;
    return other >= 0 && other < num_stages() ? std::optional(other) : std::nullopt;
  }

  void start_receive(int i) {
    Stage& stage = at(i);
    stage.wants_input = stage.next < stage.plan.size() && neighbour(i, stage.plan[stage.next], -1).has_value();
  }

  /// Serves the started receive of stage i, from a posted message or from a neighbour that offers it.
  bool deliver(int i) {
    Stage& stage = at(i);
    if (!stage.wants_input) {
      return false;
    }
    const Action action = stage.plan[stage.next];
    const int from = *neighbour(i, action, -1);
    auto& posted = posted_[{from, i, action.kind}];
    if (!posted.empty()) {
      // In-order channels: what was sent first arrives first, wanted or not.
      if (posted.front() != action.micro_batch) {
        stage.error = "stage " + std::to_string(i) + " got micro-batch " + std::to_string(posted.front()) + ", not " +
                      std::to_string(action.micro_batch);
        return false;
      }
      posted.erase(posted.begin());
      stage.wants_input = false;
      return true;
    }
    Stage& sender = at(from);
    if (sender.result.has_value() && *sender.result == action && neighbour(from, action, +1) == i) {
      sender.result.reset();
      stage.wants_input = false;
      if (rule_ == SendRule::kPlainRendezvous) {
        start_receive(from);
      }
      return true;
    }
    return false;
  }

  bool compute(int i) {
    Stage& stage = at(i);
    if (!stage.error.empty() || stage.next == stage.plan.size() || stage.wants_input || stage.result.has_value()) {
      return false;
    }
    const Action action = stage.plan[stage.next++];
    if (action.kind == ActionKind::kForward) {
      stage.live.insert(action.micro_batch);
      stage.max_live = std::max(stage.max_live, static_cast<int>(stage.live.size()));
    } else if (stage.live.erase(action.micro_batch) == 0) {
      stage.error = "stage " + std::to_string(i) + ": backward before forward";
    }
    const std::optional<int> to = neighbour(i, action, +1);
    if (to.has_value() && rule_ == SendRule::kPosted) {
      posted_[{i, *to, action.kind}].push_back(action.micro_batch);
    } else if (to.has_value()) {
      stage.result = action;
    }
    if (!stage.result.has_value() || rule_ == SendRule::kPairedRendezvous) {
      start_receive(i);
    }
    return true;
  }

  ScheduleKind kind_;
  int num_micro_batches_;
  SendRule rule_;
  std::vector<Stage> stages_;
  std::map<std::tuple<int, int, ActionKind>, std::vector<int>> posted_;  // sender, receiver, kind
};

constexpr ScheduleKind kKinds[] = {ScheduleKind::k1F1B, ScheduleKind::kGPipe};

TEST(Schedule, NoPlanDeadlocksAndEveryBoundIsMet) {
  for (const ScheduleKind kind : kKinds) {
    for (const SendRule rule : {SendRule::kPosted, SendRule::kPairedRendezvous}) {
      for (int num_stages = 1; num_stages <= 8; ++num_stages) {
        for (int num_micro_batches = 0; num_micro_batches <= 32; ++num_micro_batches) {
          ASSERT_EQ(Simulation(kind, num_stages, num_micro_batches, rule).run(), "")
              << "schedule " << static_cast<int>(kind) << ", " << num_stages << " stages, " << num_micro_batches
              << " micro-batches, rule " << static_cast<int>(rule);
        }
      }
    }
  }
}

TEST(Schedule, WaitingForASendBeforeTheNextReceiveDeadlocks1F1B) {
  EXPECT_THAT(Simulation(ScheduleKind::k1F1B, 2, 3, SendRule::kPlainRendezvous).run(), HasSubstr("stuck"));
  EXPECT_EQ(Simulation(ScheduleKind::kGPipe, 2, 3, SendRule::kPlainRendezvous).run(), "");
}

TEST(Schedule, RunsEveryForwardAndBackwardOnceAndBackwardsInAscendingOrder) {
  for (const ScheduleKind kind : kKinds) {
    for (int num_stages = 1; num_stages <= 8; ++num_stages) {
      for (int stage = 0; stage < num_stages; ++stage) {
        for (int num_micro_batches = 0; num_micro_batches <= 32; ++num_micro_batches) {
          std::vector<int> forwards, backwards, expected;
          for (const Action& action : plan_schedule(kind, num_stages, stage, num_micro_batches)) {
            (action.kind == ActionKind::kForward ? forwards : backwards).push_back(action.micro_batch);
          }
          for (int i = 0; i < num_micro_batches; ++i) {
            expected.push_back(i);
          }
          ASSERT_EQ(forwards, expected);
          ASSERT_EQ(backwards, expected);
        }
      }
    }
  }
}

TEST(Schedule, TheLastStageOf1F1BAlternates) {
  const std::vector<Action> expected = {
      {ActionKind::kForward, 0}, {ActionKind::kBackward, 0}, {ActionKind::kForward, 1}, {ActionKind::kBackward, 1}};
  EXPECT_EQ(plan_schedule(ScheduleKind::k1F1B, 3, 2, 2), expected);
}

TEST(Schedule, HasANameAndAnUnknownOneIsRefusedWithTheKnownOnes) {
  EXPECT_EQ(schedule_kind_from("1f1b"), ScheduleKind::k1F1B);
  EXPECT_EQ(schedule_kind_from("gpipe"), ScheduleKind::kGPipe);
  try {
    (void)schedule_kind_from("zigzag");
    ADD_FAILURE();
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("parallel.schedule: expected one of 1f1b, gpipe"));
    EXPECT_THAT(error.what(), HasSubstr("zigzag"));
  }
}

}  // namespace
}  // namespace espalier::dist
