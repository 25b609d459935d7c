// SPDX-License-Identifier: Apache-2.0
#include "model/attention_pieces.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

#include "model/dropout.h"

namespace espalier::model {
namespace {

struct Range {
  std::int64_t begin, end;
  [[nodiscard]] std::int64_t size() const { return end - begin; }
};

// A run of neighbouring elements of the contiguous weights: several batches, or several heads of one, or several rows
// of one head.
struct Piece {
  Range batch, heads, rows;
};

template <typename Visit>
void for_each_piece(std::int64_t num_batches, std::int64_t num_heads, std::int64_t num_rows, std::int64_t num_keys,
                    std::int64_t piece_elements, const Visit& visit) {
  const std::int64_t rows = std::clamp<std::int64_t>(piece_elements / num_keys, 1, num_rows);
  const std::int64_t heads = std::clamp<std::int64_t>(piece_elements / (num_rows * num_keys), 1, num_heads);
  const std::int64_t batches =
      std::clamp<std::int64_t>(piece_elements / (num_heads * num_rows * num_keys), 1, num_batches);
  for (std::int64_t b = 0; b < num_batches; b += batches) {
    for (std::int64_t h = 0; h < num_heads; h += heads) {
      for (std::int64_t l = 0; l < num_rows; l += rows) {
        visit(Piece{{b, std::min(b + batches, num_batches)},
                    {h, std::min(h + heads, num_heads)},
                    {l, std::min(l + rows, num_rows)}});
      }
    }
  }
}

at::Tensor narrowed(const at::Tensor& tensor, std::int64_t dim, const Range& range) {
  return tensor.size(dim) == 1 ? tensor : tensor.narrow(dim, range.begin, range.size());
}
at::Tensor rows_of(const at::Tensor& tensor, const Piece& piece) {
  return tensor.narrow(0, piece.batch.begin, piece.batch.size())
      .narrow(1, piece.heads.begin, piece.heads.size())
      .narrow(2, piece.rows.begin, piece.rows.size());
}
at::Tensor heads_of(const at::Tensor& tensor, const Piece& piece) {
  return tensor.narrow(0, piece.batch.begin, piece.batch.size()).narrow(1, piece.heads.begin, piece.heads.size());
}
at::Tensor bias_of(const at::Tensor& bias, const Piece& piece) {
  return narrowed(narrowed(narrowed(bias, 0, piece.batch), 1, piece.heads), 2, piece.rows);
}

at::ScalarType accumulate_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// [b, h, l, S] of the piece, masked by -infinity
at::Tensor scores_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& bias, const AttentionOptions& options,
                     const Piece& piece) {
  at::Tensor scores = at::matmul(rows_of(q, piece) * options.scale, heads_of(k, piece).transpose(-2, -1));
  scores = scores.to(accumulate_type(q));
  const auto part = [&](const at::Tensor& whole) { return whole.defined() ? bias_of(whole, piece) : whole; };
  if (const at::Tensor sum = sum_of_biases(part(bias), part(options.key_bias)); sum.defined()) {
    scores = scores + sum;
  }
  if (options.is_causal) {
    const auto index = at::TensorOptions().dtype(at::kLong).device(q.device());
    const at::Tensor query = at::arange(piece.rows.begin, piece.rows.end, index).unsqueeze(1);
    const at::Tensor key = at::arange(k.size(2), index).unsqueeze(0);
    scores = scores.masked_fill(key > query, -std::numeric_limits<double>::infinity());
  }
  return scores;
}

at::Tensor dropped(const at::Tensor& weights, const AttentionOptions& options, const at::Tensor& q, std::int64_t keys,
                   const Piece& piece) {
  const std::int64_t first_row = (piece.batch.begin * q.size(1) + piece.heads.begin) * q.size(2) + piece.rows.begin;
  return dropout(weights, options.dropout, options.dropout_key, first_row * keys);
}

}  // namespace

at::Tensor sum_of_biases(const at::Tensor& bias, const at::Tensor& key_bias) {
  return bias.defined() && key_bias.defined() ? bias + key_bias : bias.defined() ? bias : key_bias;
}

AttentionResult attention_forward_in_pieces(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                            const at::Tensor& bias, const AttentionOptions& options,
                                            std::int64_t piece_elements) {
  const std::int64_t batches = q.size(0), heads = q.size(1), rows = q.size(2), width = q.size(3), keys = k.size(2);
  AttentionResult result;
  result.out = at::empty({batches, rows, heads, width}, q.options()).transpose(1, 2);
  result.log_sum_exp = at::empty({batches, heads, rows}, q.options().dtype(accumulate_type(q)));
  for_each_piece(batches, heads, rows, keys, piece_elements, [&](const Piece& piece) {
    const at::Tensor scores = scores_of(q, k, bias, options, piece);
    at::Tensor log_sum_exp = at::logsumexp(scores, -1);
    log_sum_exp = log_sum_exp.masked_fill(log_sum_exp == -std::numeric_limits<double>::infinity(),
                                          std::numeric_limits<double>::infinity());
    const at::Tensor weights = (scores - log_sum_exp.unsqueeze(-1)).exp_();
    rows_of(result.out, piece)
        .copy_(at::matmul(dropped(weights, options, q, keys, piece).to(q.scalar_type()), heads_of(v, piece)));
    rows_of(result.log_sum_exp, piece).copy_(log_sum_exp);
  });
  return result;
}

AttentionGradients attention_backward_in_pieces(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                const at::Tensor& bias, const AttentionOptions& options,
                                                const at::Tensor& log_sum_exp, const at::Tensor& grad_out,
                                                bool is_bias_wanted, std::int64_t piece_elements) {
  const std::int64_t batches = q.size(0), heads = q.size(1), rows = q.size(2), width = q.size(3), keys = k.size(2);
  const at::TensorOptions sum_options = q.options().dtype(accumulate_type(q));
  AttentionGradients gradients;
  gradients.q = at::empty({batches, rows, heads, width}, q.options()).transpose(1, 2);
  gradients.k = at::zeros({batches, keys, heads, width}, sum_options).transpose(1, 2);
  gradients.v = at::zeros({batches, keys, heads, width}, sum_options).transpose(1, 2);
  if (is_bias_wanted) {
    gradients.bias = at::zeros(bias.sizes(), sum_options);
  }
  for_each_piece(batches, heads, rows, keys, piece_elements, [&](const Piece& piece) {
    const at::Tensor grad = rows_of(grad_out, piece);
    const at::Tensor weights =
        (scores_of(q, k, bias, options, piece) - rows_of(log_sum_exp, piece).unsqueeze(-1)).exp_();
    const at::Tensor kept = dropped(weights, options, q, keys, piece).to(q.scalar_type());
    heads_of(gradients.v, piece).add_(at::matmul(kept.transpose(-2, -1), grad));
    at::Tensor gradient = at::matmul(grad, heads_of(v, piece).transpose(-2, -1)).to(weights.scalar_type());
    gradient = dropped(gradient, options, q, keys, piece);
    gradient = weights * (gradient - (weights * gradient).sum(-1, /*keepdim=*/true));
    if (is_bias_wanted) {
      at::Tensor sum = bias_of(gradients.bias, piece);
      sum.add_(gradient.sum_to_size(sum.sizes()));
    }
    const at::Tensor scaled = (gradient * options.scale).to(q.scalar_type());
    rows_of(gradients.q, piece).copy_(at::matmul(scaled, heads_of(k, piece)));
    heads_of(gradients.k, piece).add_(at::matmul(scaled.transpose(-2, -1), rows_of(q, piece)));
  });
  gradients.k = gradients.k.to(k.scalar_type());
  gradients.v = gradients.v.to(v.scalar_type());
  if (is_bias_wanted) {
    gradients.bias = gradients.bias.to(bias.scalar_type());
  }
  return gradients;
}

}  // namespace espalier::model
