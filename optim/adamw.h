// SPDX-License-Identifier: Apache-2.0
// AdamW over fp32 tensors (Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2), on
// at::_fused_adamw_.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "common/options.h"

namespace espalier::optim {

struct OptimizerConfig {
  double learning_rate = 1e-3;  ///< the highest, at the end of the warm-up
  double weight_decay = 0.0;    ///< decoupled, of parameters that decay
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double clip_norm = 1.0;           ///< global norm over all stages; 0: none
  std::string schedule = "linear";  ///< linear | cosine | constant
  double warmup_fraction = 0.06;    ///< of all steps
  std::int64_t warmup_steps = -1;   ///< -1: by fraction
};
/// Keys "optimizer.*".
void describe(OptionTable& table, OptimizerConfig& config);

/// Learning rate of optimizer step `step` (from 0) of `num_steps`, as `transformers` schedules it: with W warm-up
/// steps, learning_rate * step / W below W (so step 0 moves nothing), then down to 0 at `num_steps`. Pure.
/// Throws: ConfigError for an unknown schedule, past the warm-up.
double learning_rate_at(const OptimizerConfig& config, std::int64_t step, std::int64_t num_steps);

struct Parameter {
  std::string name;
  at::Tensor value;  ///< fp32
  bool decays = true;
};

class AdamW {
 public:
  /// Moments start at zero on the parameters' device.
  /// Owns: shares the parameters' tensors and updates them in place.
  /// Requires: fp32, contiguous, one device for all.
  AdamW(const OptimizerConfig& config, std::vector<Parameter> parameters);
  /// One update; gradients in the order of the parameters, all defined, fp32. Collective: no.
  /// Stream: runs on the current stream of the parameters' device.
  /// Throws: InternalError for a gradient that is undefined or of another shape.
  void step(const std::vector<at::Tensor>& gradients, double learning_rate);
  /// "<name>/exp_avg", "<name>/exp_avg_sq" for every parameter: live tensors, for saving and loading in place.
  [[nodiscard]] std::map<std::string, at::Tensor> state() const;
  /// The moments of the named parameters are zero again and count their updates from here on (directions that the
  /// moments were not taken in: peft/rosa.h). Names of other stages are passed over.
  void restart(const std::set<std::string>& names);
  /// Updates so far; with state() and the values this is all that a resumed run needs, unless parameters were
  /// restarted: then these again, after as many updates as before.
  [[nodiscard]] std::int64_t num_steps() const { return num_steps_; }
  /// Counts on from here, as a resumed run does.
  void set_num_steps(std::int64_t num_steps);
  [[nodiscard]] std::int64_t state_bytes() const;

 private:
  /// Parameters of one weight decay, as the fused kernel wants them: lists of equal length.
  struct Group {
    double weight_decay = 0;
    std::vector<std::size_t> members;  ///< places in parameters_
    std::vector<at::Tensor> values, exp_avg, exp_avg_sq, steps;
  };

  OptimizerConfig config_;
  std::vector<Parameter> parameters_;
  std::array<Group, 2> groups_;  ///< decaying, not decaying
  at::Tensor steps_;             ///< fp32, one for each parameter: the number of its update since its start
  at::Tensor starts_;            ///< fp32: updates of the whole before the parameter's start
  std::int64_t num_steps_ = 0;
};

/// Sum of squares of each gradient, in double and, on the host, in an order that no thread count changes: combine with
/// combine_norm over all stages in chain order for a norm that does not depend on the cut. Requires: fp32.
std::vector<double> squared_norms(const std::vector<at::Tensor>& gradients);
/// sqrt of the sum in the given order.
double combine_norm(const std::vector<double>& squared);
/// Multiplies all gradients in place by clip / norm when norm > clip; clip 0 never clips.
/// Requires: a finite norm; the caller stops the run before on one that is not.
void clip_by_norm(std::vector<at::Tensor>& gradients, double norm, double clip);

}  // namespace espalier::optim
