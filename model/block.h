// SPDX-License-Identifier: Apache-2.0
// The one transformer block of all families, driven by a spec. Methods reach it through slots: a LinearDelta on each
// linear, an Insert at named places, and attention_part / feed_forward_part for the reversible route.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/context.h"
#include "model/linear.h"

namespace espalier::model {

enum class NormPlace { kBefore, kAfter };  ///< pre-norm or post-norm residual branches
enum class Activation {
  kGelu,
  kGeluTanh,
  kQuickGelu,
  kRelu,
  kSilu
};  ///< "gelu", "gelu_new"/"gelu_pytorch_tanh", "quick_gelu", ...
/// Throws: ConfigError naming the known activations.
Activation activation_from(const std::string& hugging_face_name);
at::Tensor activate(const at::Tensor& x, Activation activation);

/// Rotary positions (Su et al., RoFormer, 2021): the first half of a head's width turns with the second.
struct RotarySpec {
  std::vector<double> frequencies;  ///< radians per position, one for each pair; 2 * size() = head width
  double scale = 1;                 ///< of the turned queries and keys ("attention factor")
};

/// Position bias by the distance of key and query, in buckets (Raffel et al., T5, JMLR 2020, section 2.1).
struct RelativeBiasSpec {
  std::int64_t num_buckets = 32;
  std::int64_t max_distance = 128;
  bool is_bidirectional = true;
};

/// D width, H heads, G key/value heads, W head width, F feed-forward width. A family that needs something new adds a
/// named field.
struct BlockSpec {
  std::int64_t width = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_key_value_heads = 0;
  std::int64_t head_width = 0;
  std::int64_t feed_forward_width = 0;
  NormKind norm_kind = NormKind::kLayerNorm;
  NormPlace norm_place = NormPlace::kAfter;
  double norm_epsilon = 1e-12;
  Activation activation = Activation::kGelu;
  bool is_gated = false;           ///< feed-forward: act(gate(x)) * up(x)
  bool has_attention_bias = true;  ///< of query, key and value
  bool has_output_bias = true;     ///< of the attention's output
  bool has_feed_forward_bias = true;
  double attention_scale = 0;  ///< 0: 1 / sqrt(head_width)
  bool is_causal = false;
  bool has_cross_attention = false;
  std::optional<RotarySpec> rotary;
  bool has_position_bias = false;                 ///< adds BlockInputs::position_bias to the scores
  std::optional<RelativeBiasSpec> relative_bias;  ///< this block owns the table that its stack shares
  double hidden_dropout = 0;
  double attention_dropout = 0;
  double activation_dropout = 0;  ///< inside the feed-forward
  double drop_path = 0;           ///< share of rows that leave a branch out in training (Huang et al., ECCV 2016)
  bool keeps_scores = false;      ///< attention_reference(), score matrices and all: to measure what that costs
};

/// What a block reads besides its hidden state. B rows, T tokens, S tokens of the memory
struct BlockInputs {
  at::Tensor attention_bias = {};  ///< additive, [B, 1, 1, T] (with a cache, its tokens and T); undefined: everywhere
  at::Tensor position_bias = {};   ///< additive, [1, H, T, T] (with a cache, [1, H, T, its tokens and T])
  at::Tensor memory = {};          ///< [B, S, D] for cross-attention
  at::Tensor memory_bias = {};     ///< additive, [B, 1, 1, S]
  at::Tensor rotary_cos = {};      ///< [1 or B, 1, T, W], with rotary_sin; undefined: positions are not rotary
  at::Tensor rotary_sin = {};
};

/// Tensor -> Tensor at a named place of a block.
/// After a branch it replaces the branch's output: it reads it after its dropout, and its result joins the residual
/// (Houlsby et al., ICML 2019). Parallel to the feed-forward it reads what the feed-forward reads (after the norm of a
/// pre-norm block), and its result is added beside it (He et al., ICLR 2022).
class Insert {
 public:
  virtual ~Insert() = default;
  /// x [B, T, D] -> [B, T, D]
  [[nodiscard]] virtual at::Tensor forward(const at::Tensor& x, const ForwardContext& context) const = 0;
};
enum class InsertPlace { kAfterAttention, kAfterCrossAttention, kAfterFeedForward, kParallelToFeedForward };

class TransformerBlock {
 public:
  TransformerBlock(BlockSpec spec, LayerPlace place);

  /// x [B, T, D] -> [B, T, D]; of K networks that run together [K, B, T, D].
  /// Requires: T = 1 where the block is causal and the context's cache holds tokens of it.
  [[nodiscard]] at::Tensor forward(const at::Tensor& x, const BlockInputs& inputs, const ForwardContext& context) const;
  /// The attention branch with its residual and norm (cross-attention too, where the block has it), as forward().
  [[nodiscard]] at::Tensor attention_part(const at::Tensor& x, const BlockInputs& inputs,
                                          const ForwardContext& context) const;
  /// The feed-forward branch with its residual and norm: x as forward().
  [[nodiscard]] at::Tensor feed_forward_part(const at::Tensor& x, const ForwardContext& context) const;

  /// [1, H, T, num_cached + T] in fp32 from the block's own table, for the last T of that many tokens.
  /// Requires: spec().relative_bias.
  [[nodiscard]] at::Tensor relative_position_bias(std::int64_t num_tokens, std::int64_t num_cached) const;

  /// Roles: attention.{query,key,value,output}, attention.norm, cross_attention.*, feed_forward.{up,gate,down,norm},
  /// each with .weight and .bias; attention.relative_bias.weight [buckets, H].
  void visit_weights(const WeightVisitor& visit);
  /// Every linear by role without ".weight", in an order that keys the dropout of factors: never change it.
  void visit_linears(const std::function<void(const std::string& role, Linear& linear)>& visit);
  /// Null takes the insert out again.
  void set_insert(InsertPlace place, std::shared_ptr<const Insert> insert);

  [[nodiscard]] const BlockSpec& spec() const { return spec_; }
  [[nodiscard]] const LayerPlace& place() const { return place_; }

 private:
  struct AttentionWeights {
    Linear query, key, value, output;
    Norm norm;
  };
  /// What lies over the scores of one attention.
  struct ScoreBias {
    at::Tensor position, keys;  ///< [1, H, T, S], [B, 1, 1, S]
    bool is_causal = false;
  };
  /// Keys and values that the queries of x see: of x itself, of the memory, and of what the context's cache holds.
  [[nodiscard]] std::pair<at::Tensor, at::Tensor> keys_and_values(const AttentionWeights& weights,
                                                                  const at::Tensor& source, const BlockInputs* rotary,
                                                                  bool is_memory, const ForwardContext& context) const;
  [[nodiscard]] at::Tensor attend(const AttentionWeights& weights, const at::Tensor& x, const at::Tensor& memory,
                                  const ScoreBias& bias, const BlockInputs* rotary, DropoutSite site,
                                  const ForwardContext& context) const;
  /// Where a branch draws: elements of its output, and rows that leave it out.
  struct BranchSites {
    DropoutSite output, path;
  };
  /// x + dropout(branch(x)) with the norm at its place, an insert after the branch, and what runs beside the branch.
  [[nodiscard]] at::Tensor add_branch(const at::Tensor& x, const Norm& norm,
                                      const std::function<at::Tensor(const at::Tensor&)>& branch, const Insert* insert,
                                      BranchSites sites, const ForwardContext& context,
                                      const at::Tensor* beside = nullptr) const;
  [[nodiscard]] const Insert* find_insert(InsertPlace place) const;

  BlockSpec spec_;
  LayerPlace place_;
  AttentionWeights attention_;
  std::unique_ptr<AttentionWeights> cross_attention_;
  Linear up_, gate_, down_;
  Norm feed_forward_norm_;
  at::Tensor relative_bias_;  // [buckets, H]
  std::map<InsertPlace, std::shared_ptr<const Insert>> inserts_;
};

}  // namespace espalier::model
