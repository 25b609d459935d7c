// SPDX-License-Identifier: Apache-2.0
// A stage slice: a contiguous range of the chain, holding and loading its own weights only.
// B rows of a micro-batch, T tokens of the only stack or the encoder (N prompts first, V visual tokens last), U target
// tokens of a decoder, D width, W head width, C labels
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/backbone.h"
#include "model/carry.h"
#include "model/weights.h"

namespace espalier::model {

/// What every layer of a stage reads of the micro-batch besides the carry; made once per micro-batch.
struct StageInputs {
  NamedTensors tensors;                ///< as prepare() took them, on the slice's device
  at::Tensor attention_bias;           ///< [B, 1, 1, T] additive, in the compute type; undefined when nothing is padded
  at::Tensor decoder_attention_bias;   ///< [B, 1, 1, U], the same of decoder_attention_mask
  at::Tensor rotary_cos, rotary_sin;   ///< [1 or B, 1, T, W] in the compute type, where positions are rotary
  std::int64_t num_visual_tokens = 0;  ///< V, the last of the T; also where `goes_on` and the encoder reads none
  std::int64_t num_prompts = 0;        ///< N, the first of the T (StageSlice::set_prompts); none where `goes_on`
  at::Tensor prompts = {};             ///< [N, width of the token table] on the first stage
};

/// The same micro-batch without its images: what the frozen backbone of a side network reads where that alone sees
/// them.
StageInputs text_only(StageInputs inputs);
BatchShape text_only(BatchShape shape);

/// What is left of the states [B, N + T, D] that come out of the stack of `layer` without those of its prompts.
at::Tensor without_prompts(const at::Tensor& hidden, const LayerPlan& layer, const StageInputs& inputs);

/// Rows and tokens of a micro-batch, as the carry between stages needs them. Requires: inputs as prepare() takes them.
BatchShape batch_shape(const Backbone& backbone, const NamedTensors& tensors);

/// Makes decoder_input_ids of an encoder-decoder's batch that has none: the labels [B, U] moved one place to the right
/// behind the start token, with padding for -100; without labels of that shape the input_ids, moved alike.
void complete_decoder_inputs(const Backbone& backbone, NamedTensors& tensors);

/// What enters the stage that begins with `first_layer` when the chain runs as it is: "hidden", in a decoder "memory",
/// and "position_bias" where blocks share one that a block below made. Gradients are left to the method.
/// Requires: 1 <= first_layer < num_layers().
CarryPlan plan_chain_carry(const Backbone& backbone, int first_layer, const BatchShape& shape,
                           at::ScalarType compute_type);

/// One link of the chain.
class Layer {
 public:
  explicit Layer(LayerPlan plan) : plan_(std::move(plan)) {}
  virtual ~Layer() = default;
  /// Reads and replaces entries of the carry: the embedding sets "hidden" [B, T, D], blocks replace it, the head sets
  /// "logits": a pooled one [B, C], a language model's [B, T or U, vocabulary] of the words (no prompts), in the
  /// compute type. Requires: inputs from StageSlice::prepare(), which saw to what the head reads.
  virtual void forward(Carry& carry, const StageInputs& inputs, const ForwardContext& context) const = 0;
  /// Every weight by role ("attention.query.weight"), in an order that depends on the plan alone.
  virtual void visit_weights(const WeightVisitor& visit) = 0;
  /// The linears of a block or of a pooled head by role without ".weight"; other layers show none.
  virtual void visit_linears(const std::function<void(const std::string& role, Linear& linear)>& visit) = 0;
  /// The block, for layers that are one; null otherwise.
  [[nodiscard]] virtual TransformerBlock* block() { return nullptr; }
  [[nodiscard]] const LayerPlan& plan() const { return plan_; }

 private:
  LayerPlan plan_;
};

/// Chain indices [first, end).
struct LayerRange {
  int first = 0;
  int end = 0;
  [[nodiscard]] bool contains(int layer) const { return layer >= first && layer < end; }
};

/// An empty layer of that plan: its slots have shapes but no tensors yet.
std::unique_ptr<Layer> make_layer(const LayerPlan& plan);

/// Every weight of the whole chain from the plan alone, in chain order; nothing is loaded.
void visit_planned_weights(const Backbone& backbone,
                           const std::function<void(const LayerPlan& layer, const std::string& role,
                                                    const std::vector<std::int64_t>& shape)>& visit);

/// Every tensor that a folder of this model stores, each once and in the shape it has there: from the plan alone. Tied
/// weights come with the first role that holds them, parts of one tensor with the first part.
void visit_stored_tensors(const Backbone& backbone,
                          const std::function<void(const LayerPlan& layer, const StoredWeight& stored,
                                                   const std::vector<std::int64_t>& shape)>& visit);

/// Random numbers in place of a folder's weights, for measurements: of the backbone; weights of the task start fresh
/// anyway.
std::unique_ptr<WeightSource> random_backbone_weights(const Backbone& backbone, std::uint64_t seed);

/// Cuts the chain into one range per stage, none without a block, balanced by blocks; embedding on the first, head on
/// the last. `first_blocks` (optional, from the user): index of the first block of stages 1, 2, ... Throws: ConfigError
/// when there are fewer blocks than stages or the cut is not ascending.
std::vector<LayerRange> plan_stages(const Backbone& backbone, int num_stages,
                                    const std::vector<std::int64_t>& first_blocks = {});

struct SliceOptions {
  at::ScalarType compute_type = at::kFloat;
  at::Device device = at::kCPU;
  std::uint64_t seed = 0;  ///< of task weights that the folder does not have
  double drop_path = 0;    ///< of the highest block of each stack; that of the others grows up to it from 0
};

/// Bytes of mapped weights in use, counted with the allocator (common/counting_allocator.h) while this lives.
class MappedBytes {
 public:
  MappedBytes() = default;
  MappedBytes(MappedBytes&& other) noexcept : views_(std::exchange(other.views_, {})) {}
  MappedBytes& operator=(MappedBytes&& other) noexcept {
    std::swap(views_, other.views_);
    return *this;
  }
  ~MappedBytes();
  void add(const at::Tensor& view);
  /// Nothing happens unless `view` was added.
  void remove(const at::Tensor& view);

 private:
  std::map<const void*, std::int64_t> views_;  // address -> bytes; a tied weight counts once
};

class WeightLoader;

class StageSlice {
 public:
  /// Builds the layers of `range` and fills them: fp32-on-CPU weights stay views of the mapped file, others are
  /// converted. Task weights are fp32 always; absent from the folder they are drawn by canonical name, those of a head
  /// from N(0, initializer_range^2), biases 0, those of a visual embedding as initial_visual_weight() says.
  /// Throws: ConfigError naming every needed tensor that is missing or has another shape, and for a drop_path that
  /// drops nothing; IoError where a file changed since it was opened.
  StageSlice(const Backbone& backbone, LayerRange range, const WeightSource& weights, const SliceOptions& options);
  /// The same range once more, for another task: the frozen weights are those of `base`, which share its memory, the
  /// task weights are its own, of the head that `backbone` has and drawn by `seed`. Throws: as above.
  StageSlice(StageSlice& base, const Backbone& backbone, const WeightSource& weights, std::uint64_t seed);

  /// From now on prepare() puts `count` prompts in front of the words of every row of the first stack: attended, at the
  /// first positions, of token type 0. `prompts` [count, D] are read where words are embedded, so they are undefined on
  /// other slices than the first. Requires: a stack that reads ids.
  void set_prompts(std::int64_t count, at::Tensor prompts);
  [[nodiscard]] std::int64_t num_prompts() const { return num_prompts_; }

  /// Checks one micro-batch, moves it to the device and makes what every layer reads.
  /// Requires: `tensors` on the host, through complete_decoder_inputs(). `goes_on`: these tokens follow cached ones,
  /// masks cover them all, and an encoder has nothing more to read (input_ids [B, 0], vis_feats [B, V, 0]). Throws:
  /// ConfigError for ids, types, positions or lengths that the model does not have, and for a row without the token
  /// that the head reads.
  [[nodiscard]] StageInputs prepare(NamedTensors tensors, bool goes_on = false) const;
  /// Replaces a slot of this slice by an owned fp32 leaf that requires grad. Mapped weights are read-only: whoever
  /// trains one must take it through here, which also ends the counting of its mapped bytes.
  void make_trainable(at::Tensor& slot);
  [[nodiscard]] const std::vector<std::unique_ptr<Layer>>& layers() const { return layers_; }
  [[nodiscard]] const Backbone& backbone() const { return backbone_; }
  [[nodiscard]] LayerRange range() const { return range_; }
  [[nodiscard]] const SliceOptions& options() const { return options_; }
  /// The chain's end with a head that every method trains: a pooled one.
  [[nodiscard]] bool has_task_head() const;
  /// Full canonical name of a weight: layer name + "." + role.
  void visit_weights(const WeightVisitor& visit);
  /// Bytes of weights that need no gradient, a tied one once.
  [[nodiscard]] std::int64_t frozen_bytes();

 private:
  void load_layers(WeightLoader& loader);

  Backbone backbone_;
  LayerRange range_;
  SliceOptions options_;
  std::int64_t num_prompts_ = 0;
  at::Tensor prompts_;
  MappedBytes mapped_;
  std::vector<std::unique_ptr<Layer>> layers_;
};

/// Throws: ConfigError listing stored tensors that no role of the whole model uses and the family does not know.
void refuse_unknown_tensors(const Backbone& backbone, const WeightSource& weights);

}  // namespace espalier::model
