// SPDX-License-Identifier: Apache-2.0
// What a stage keeps of a micro-batch under MEFT, step by step from the bottom: of a reversible block the remainders,
// of anything else its graph. The backward walks down, making each block's inputs of its outputs, so that the graph of
// one F or G lives at a time.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "peft/meft_block.h"
#include "peft/meft_streams.h"

namespace espalier::peft {

/// Names of the streams in a carry.
inline constexpr const char* kFirstStream = "stream_1";
inline constexpr const char* kSecondStream = "stream_2";

/// Compares inverted streams with the true ones, in the micro-batches that are checked.
class InversionCheck {
 public:
  /// `error_limit` of the relative error; 0: every bit must agree.
  explicit InversionCheck(double error_limit) : error_limit_(error_limit) {}
  /// Throws: NumericError above the limit; InternalError where an exact inversion differs.
  void compare(const Streams& found, const Streams& expected, const std::string& name);
  /// The largest relative error so far.
  [[nodiscard]] std::optional<double> error() const { return error_; }

 private:
  double error_limit_;
  std::optional<double> error_;
};

/// What walks down through a backward.
struct MeftDescent {
  model::Carry gradients;  ///< of the streams, "hidden", "memory" and "logits", as far as they are wanted below
  Streams streams;         ///< what the block below put out, where the one above was inverted
};

class MeftStep {
 public:
  virtual ~MeftStep() = default;
  /// Takes the gradients of what the step put out from `descent` and leaves there those of what it read, as far as they
  /// are wanted below. Requires: called once, behind the step above. Throws: as StagePass::backward().
  virtual void backward(MeftDescent& descent, const GradientSink& sink) = 0;
};

/// Everything that the blocks of one method share.
struct MeftSetting {
  MeftPlan plan;
  std::unique_ptr<StreamArithmetic> arithmetic;
  InversionCheck check;
};

/// One adapted block.
class MeftBlockStep final : public MeftStep {
 public:
  /// What the step may need of its neighbours.
  struct Neighbours {
    bool keeps_output = false;   ///< the step above cannot give this block's output streams back
    bool inverts_below = false;  ///< the step below waits for this block's input streams
  };
  /// Runs the block; `streams` becomes its output. With `step` null nothing is kept.
  static void forward(MeftSetting& setting, const MeftBlock& block, Streams& streams,
                      MeftBlock::Surroundings& surroundings, const Neighbours& neighbours, bool is_checked,
                      std::unique_ptr<MeftStep>* step);
  void backward(MeftDescent& descent, const GradientSink& sink) override;

 private:
  MeftBlockStep(MeftSetting& setting, const MeftBlock& block) : setting_(setting), block_(block) {}
  [[nodiscard]] MeftBlock::Traced trace(MeftBlock::Half half, const at::Tensor& x);
  /// Gradient of the half's input, undefined where there is none; that of the memory is added to the descent's.
  at::Tensor differentiate(MeftBlock::Half half, MeftBlock::Traced traced, const at::Tensor& gradient,
                           MeftDescent& descent, const GradientSink& sink);

  MeftSetting& setting_;
  const MeftBlock& block_;
  MeftBlock::Surroundings surroundings_;
  bool is_reversible_ = false, inverts_below_ = false;
  at::Tensor f_remainder_, g_remainder_;
  std::optional<Streams> output_;           ///< where kept
  std::optional<Streams> expected_;         ///< true input streams, where checked
  std::optional<MeftBlock::Traced> f_, g_;  ///< of a block that keeps its graphs
};

/// The streams begin: both are "hidden".
class MeftEntryStep final : public MeftStep {
 public:
  void backward(MeftDescent& descent, const GradientSink& sink) override;
};

/// Ordinary layers with a graph.
class MeftJointStep final : public MeftStep {
 public:
  MeftJointStep(model::Carry leaves, const model::Carry& outputs, TrainedRange trained);
  void backward(MeftDescent& descent, const GradientSink& sink) override;

 private:
  std::vector<std::string> outputs_;
  TrainedRange trained_;
  AutogradPass graph_;
};

class MeftPass final : public StagePass {
 public:
  void add(std::unique_ptr<MeftStep> step) { steps_.push_back(std::move(step)); }
  [[nodiscard]] bool is_empty() const { return steps_.empty(); }
  model::Carry backward(const model::Carry& output_gradients, const GradientSink& sink) override;

 private:
  std::vector<std::unique_ptr<MeftStep>> steps_;
};

}  // namespace espalier::peft
