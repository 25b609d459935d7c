// SPDX-License-Identifier: Apache-2.0
// Runs a method's resampling (ROSA draws new subspaces) between optimizer steps: the replicas of a stage share its
// weights, each tensor is made by one of them and broadcast, so that all hold the same bits; moments of what was drawn
// anew start again, the learning rate's schedule goes on.
#pragma once

#include <cstdint>
#include <set>
#include <string>

#include "dist/mesh.h"
#include "optim/adamw.h"
#include "peft/method.h"

namespace espalier::train {

class ResamplingEvents {
 public:
  /// A method without resampling has no events.  Owns: nothing; all arguments outlive it.
  ResamplingEvents(peft::Method& method, dist::Mesh& mesh, optim::AdamW& optimizer, std::int64_t steps_per_epoch);

  /// The event before optimizer step `step` (0-based), if there is one. Weight j of a stage is the work of its replica
  /// j mod R, on one thread.
  /// Collective: every rank, with no micro-batch in flight. Returns whether there was an event.
  /// Throws: InternalError on every rank when the replicas of a stage do not hold the same bits.
  bool run_before(std::int64_t step);
  /// Puts the optimizer's counts where a run that was not interrupted has them before step `step`; its moments are read
  /// after this.
  void resume_at(std::int64_t step);

  [[nodiscard]] bool has_any() const { return resampling_ != nullptr; }
  /// Time that the events of this run took on this rank, waiting for others included.
  [[nodiscard]] double seconds() const { return seconds_; }

 private:
  void require_equal_replicas(const char* when) const;
  void share_out(std::int64_t event);

  peft::Resampling* resampling_;
  dist::Mesh& mesh_;
  optim::AdamW& optimizer_;
  std::int64_t steps_per_epoch_;
  std::set<std::string> restarted_;  ///< tensors that an event changes
  double seconds_ = 0;
};

}  // namespace espalier::train
