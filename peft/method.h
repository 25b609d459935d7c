// SPDX-License-Identifier: Apache-2.0
// A fine-tuning method on one stage. The method decides what trains, what a stage keeps between forward and backward,
// and what crosses to the next stage; the executor in train/ only moves carries and gradients. Nothing here is
// collective: what the ranks share is run by train/.
// B rows, T tokens of a micro-batch, D width, C labels, V vocabulary
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/options.h"
#include "model/slice.h"
#include "peft/method_config.h"

namespace espalier::peft {

/// The way the gradient takes. through: back through the backbone. beside: through a side network only, the backbone
/// runs without grad. reversible: through the backbone, whose inputs are recomputed.
enum class Route { kThrough, kBeside, kReversible };

/// A tensor that trains.
struct TrainedTensor {
  std::string name;       ///< canonical: never depends on the layout
  at::Tensor value;       ///< fp32 leaf that requires grad
  bool decays = true;     ///< decoupled weight decay applies (not to biases, norms, gates)
  bool is_inert = false;  ///< outside the graph (gate of a dropped layer): counted; no gradient, moments, reduction
  /// A further place of a tied tensor, under the name of the first, which alone is counted and saved. On the slice of
  /// the first it shares its memory, on another it has its own; what trains it is the sum of the gradients of all.
  bool is_copy = false;
};

/// Receives the gradient of trained()[index] for one micro-batch; undefined when the graph did not reach it.
using GradientSink = std::function<void(int index, at::Tensor gradient)>;

/// What a stage keeps of one micro-batch between its forward and its backward.
class StagePass {
 public:
  virtual ~StagePass() = default;
  /// `output_gradients`: gradients of the outgoing entries that need one, on the last stage those of the logits, [B, C]
  /// or [B, T, V]. Returns the gradients of the incoming entries that need one; both have the names and sizes of
  /// Method::plan_carry(). `sink` is called at most once for each tensor of trained(), never for an inert one.
  /// Requires: called once.
  /// Throws: InternalError where an output gradient is missing, an incoming entry that needs a gradient gets none, or
  /// an exact inversion gives other bits; NumericError where an inexact one exceeds peft.meft.error_limit.
  virtual model::Carry backward(const model::Carry& output_gradients, const GradientSink& sink) = 0;
};

struct StageResult {
  /// Detached; on the last stage each objective's logits, under logits_name(), [B, C] of a pooled head and [B, T, V] of
  /// a language model's, and in evaluation "hidden" [B, T, D] where the method gives the head every token's state.
  model::Carry outgoing;
  std::unique_ptr<StagePass> pass;  ///< null when nothing is kept
};

/// Named tensors of one weight that a method draws anew between optimizer steps.
using WeightParts = std::vector<std::pair<std::string, at::Tensor>>;

/// What a method does to its tensors between optimizer steps (ROSA draws new subspaces). Each weight is a job of its
/// own, so that replicas can share the work: one of them does it, and the others receive the tensors.
class Resampling {
 public:
  virtual ~Resampling() = default;
  /// Number of the event before optimizer step `step` (0-based, the next to run), if there is one: 0 before the first.
  [[nodiscard]] virtual std::optional<std::int64_t> event_before(std::int64_t step,
                                                                 std::int64_t steps_per_epoch) const = 0;
  /// Weights of this slice that are drawn anew; maybe none.
  [[nodiscard]] virtual int num_weights() const = 0;
  /// The tensors that an event changes, in place; an event keeps their identity.
  [[nodiscard]] virtual WeightParts parts(int weight) = 0;
  /// The event for one weight: a pure function of its parts, the seed, `event` and its canonical name.
  virtual void resample(int weight, std::int64_t event) = 0;
};

/// A weight of the backbone by layer and role, or what is known of it, in any float type.
using WeightReader = std::function<at::Tensor(const model::LayerPlan& layer, const std::string& role)>;

/// A start that depends on how much each weight of the backbone matters for the data (LST's pruning by Fisher
/// information): done once, before the first step of a new run.
class ImportanceStart {
 public:
  virtual ~ImportanceStart() = default;
  /// Training rows that decide.
  [[nodiscard]] virtual std::int64_t num_rows() const = 0;
  /// Elements of what one stage hands on to the next.
  [[nodiscard]] virtual std::int64_t num_handed_on() const = 0;
  /// Fills this slice's trained tensors. Stages do it in order: `below` is what the stage below returned, undefined on
  /// the first; int64 [num_handed_on()] on the host. `importance` knows the layers of this slice.
  virtual at::Tensor start(const WeightReader& importance, const at::Tensor& below) = 0;
};

/// What trains towards one loss. With several, each has its own tensors, its own head and its own loss, and none knows
/// of the others.
struct Objective {
  std::string name = {};                        ///< empty for the only one
  int first_trained = 0, end_trained = 0;       ///< its range of trained()
  ImportanceStart* importance_start = nullptr;  ///< null: starts without looking at the data
  nlohmann::json facts = {};                    ///< as describe_export()
  /// Of the divergence from kTeacherLogits in its loss.
  double distill_weight = 0;
};

/// What the name of everything that belongs to an objective begins with: its trained tensors, its logits.
inline std::string objective_prefix(const std::string& name) {
  return name.empty() ? std::string() : name + ":";
}
/// What the frozen backbone itself predicts, beside the logits of objectives that learn from it, in training.
inline constexpr const char* kTeacherLogits = "teacher_logits";
inline std::string logits_name(const Objective& objective) {
  return objective_prefix(objective.name) + "logits";
}

class Method {
 public:
  virtual ~Method() = default;
  [[nodiscard]] virtual std::string_view name() const = 0;
  [[nodiscard]] virtual Route route() const = 0;

  /// What enters the stage that begins with chain layer `first_layer` (1..num_layers-1). Pure: depends on backbone and
  /// options, not on this slice.
  [[nodiscard]] virtual model::CarryPlan plan_carry(int first_layer, const model::BatchShape& shape) const = 0;

  /// This slice's trained tensors, in chain order; the task head's are the last. Fixed after construction. Names repeat
  /// for copies alone. Several objectives follow one another.
  [[nodiscard]] virtual const std::vector<TrainedTensor>& trained() const = 0;

  /// The same on every stage but for the ranges; one, with everything, unless a method was made for several.
  [[nodiscard]] virtual std::vector<Objective> objectives();

  /// Runs the slice on one micro-batch. `incoming`: the entries of plan_carry(), empty on the first stage. `inputs`: of
  /// StageSlice::prepare(). `keeps_pass` is false in evaluation.
  /// Throws: NumericError where a fixed-point stream leaves its range; ConfigError as Layer::forward().
  [[nodiscard]] virtual StageResult forward(model::Carry incoming, const model::StageInputs& inputs,
                                            const model::ForwardContext& context, bool keeps_pass) = 0;

  /// Tensors that do not train and are no longer what the folder stores, under canonical names (the rest of a weight
  /// that ROSA split): a checkpoint holds them beside the trained ones.
  [[nodiscard]] virtual std::map<std::string, at::Tensor> kept_tensors() const { return {}; }
  /// Largest relative error of the inputs that this stage's backward recomputed so far; nothing where none is or none
  /// was measured.
  [[nodiscard]] virtual std::optional<double> inversion_error() const { return std::nullopt; }
  /// Null for a method that changes nothing between steps.
  [[nodiscard]] virtual Resampling* resampling() { return nullptr; }

  /// Facts for the exported adapter's JSON (kind, ranks, reduction, ...), of the only objective: an object, or null
  /// where there is nothing to say.
  [[nodiscard]] virtual nlohmann::json describe_export() const = 0;
};

/// What "peft.method" may be.
std::vector<std::string> method_names();

/// Keys "peft.method" and "peft.<method>.*".
void describe(OptionTable& table, MethodConfig& config);

/// Attaches the method to `slice`. `weights` is the whole folder: pruning walks layers that other stages hold. `seed`:
/// the run's, in place of which the method's own stands if it has one.
/// Owns: nothing of `slice` and `weights`, which outlive the method.
/// Throws: ConfigError for options that do not fit the backbone.
std::unique_ptr<Method> make_method(const MethodConfig& config, model::StageSlice& slice,
                                    const model::WeightSource& weights, std::uint64_t seed);

/// Seed of what trains: the method's own, or the run's.
std::uint64_t trained_seed(const MethodConfig& config, std::uint64_t seed);

/// One of several objectives.
struct ObjectiveRequest {
  std::string name;
  MethodConfig method;
  model::Backbone backbone;  ///< with the head of this objective; the same but for it
};

/// Attaches several methods that share the frozen forward of `slice`, whose head is the first one's. Each gives the
/// bits that it gives alone; with `is_batched`, in training, up to rounding where networks of one shape run together.
/// Owns: as make_method(). Throws: as make_method(); ConfigError for methods that are not beside the backbone, or want
/// its forward with and without dropout.
std::unique_ptr<Method> make_joint_method(const std::vector<ObjectiveRequest>& objectives, model::StageSlice& slice,
                                          const model::WeightSource& weights, std::uint64_t seed, bool is_batched);

/// Trained scalars of a whole model, a tied one once, head counted apart; from the plan alone.
struct TrainedCount {
  std::int64_t method = 0;
  std::int64_t head = 0;
};
/// Throws: ConfigError for options that do not fit the backbone.
TrainedCount count_trained(const MethodConfig& config, const model::Backbone& backbone);

}  // namespace espalier::peft
