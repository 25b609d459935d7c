// SPDX-License-Identifier: Apache-2.0
#include "model/attention.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "common/counting_allocator.h"
#include "common/error.h"
#include "model/attention_pieces.h"

namespace espalier::model {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

enum class BiasKind {
  kNone,
  kKeyMask,
  kPosition,
  kTrainedPosition,
  kTrainedPerHead,
  kTrainedFull,
  kTrainedForAllHeads
};

// B batch, H heads, L query tokens, S key tokens, W head width
struct Case {
  std::int64_t batch, heads, queries, keys, width;
  BiasKind bias = BiasKind::kNone;
  double dropout = 0;
  bool is_causal = false;
  at::ScalarType type = at::kFloat;

  [[nodiscard]] bool is_bias_trained() const { return bias >= BiasKind::kTrainedPosition; }
  friend std::ostream& operator<<(std::ostream& stream, const Case& self) {
    return stream << "B" << self.batch << " H" << self.heads << " L" << self.queries << " S" << self.keys << " W"
                  << self.width << " bias " << static_cast<int>(self.bias) << " dropout " << self.dropout
                  << (self.is_causal ? " causal " : " ") << self.type;
  }
};

struct Inputs {
  at::Tensor q, k, v, bias, grad;
  AttentionOptions options;
};

at::Tensor make_bias(const Case& c) {
  switch (c.bias) {
    case BiasKind::kNone:
      return {};
    case BiasKind::kKeyMask: {
      // another number of hidden keys in every batch, at least one left
      at::Tensor bias = at::zeros({c.batch, 1, 1, c.keys});
      for (std::int64_t b = 0; b < c.batch; ++b) {
        bias[b].slice(-1, std::max<std::int64_t>(1, c.keys - 1 - b)).fill_(-kInfinity);
      }
      return bias;
    }
    case BiasKind::kPosition:
    case BiasKind::kTrainedPosition:
      return at::randn({1, c.heads, c.queries, c.keys});
    case BiasKind::kTrainedPerHead:
      return at::randn({c.heads, 1, c.keys});
    case BiasKind::kTrainedFull:
      return at::randn({c.batch, c.heads, c.queries, c.keys});
    case BiasKind::kTrainedForAllHeads:
      return at::randn({c.batch, 1, c.queries, c.keys});
  }
  return {};
}

// q, k and v as a block makes them: views [B, H, rows, W] of [B, rows, H * W]
Inputs make_inputs(const Case& c) {
  at::manual_seed(1);
  const auto heads = [&](std::int64_t rows) {
    const at::Tensor flat = at::randn({c.batch, rows, c.heads * c.width}).to(c.type);
    return flat.view({c.batch, rows, c.heads, c.width}).transpose(1, 2).requires_grad_();
  };
  Inputs inputs{heads(c.queries), heads(c.keys), heads(c.keys), make_bias(c), heads(c.queries).detach(), {}};
  if (inputs.bias.defined()) {
    inputs.bias = inputs.bias.to(c.type).requires_grad_(c.is_bias_trained());
  }
  inputs.options = {1 / std::sqrt(static_cast<double>(c.width)), c.is_causal, c.dropout, 0xABCDEF0123456789ULL, {}};
  return inputs;
}

using Attention = at::Tensor (*)(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                 const AttentionOptions&);

// {out, gradient of q, k, v and, if trained, bias}
std::vector<at::Tensor> run(Attention function, const Inputs& in) {
  const at::Tensor out = function(in.q, in.k, in.v, in.bias, in.options);
  std::vector<at::Tensor> wanted{in.q, in.k, in.v};
  if (in.bias.defined() && in.bias.requires_grad()) {
    wanted.push_back(in.bias);
  }
  std::vector<at::Tensor> results = torch::autograd::grad({out}, wanted, {in.grad});
  results.insert(results.begin(), out.detach());
  return results;
}

Inputs in_double(const Inputs& in) {
  const auto wide = [](const at::Tensor& t) {
    return t.defined() ? t.detach().to(at::kDouble).requires_grad_(t.requires_grad()) : t;
  };
  return {wide(in.q), wide(in.k), wide(in.v), wide(in.bias), wide(in.grad), in.options};
}

double largest_error(const at::Tensor& found, const at::Tensor& expected) {
  const double size = std::max(expected.abs().max().item<double>(), 1e-3);
  return (found.to(at::kDouble) - expected).abs().max().item<double>() / size;
}

class AttentionCases : public ::testing::TestWithParam<Case> {};

TEST_P(AttentionCases, EqualsTheReferenceInDoubleForwardAndBackward) {
  const Inputs inputs = make_inputs(GetParam());
  const auto found = run(attention, inputs), expected = run(attention_reference, in_double(inputs));
  const double tolerance = GetParam().type == at::kFloat ? 2e-6 : GetParam().type == at::kDouble ? 2e-7 : 1.5e-2;
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(found[i].scalar_type(), GetParam().type);
    EXPECT_EQ(found[i].sizes(), expected[i].sizes());
    EXPECT_LT(largest_error(found[i], expected[i]), tolerance) << "result " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Kernel, AttentionCases,
                         ::testing::Values(Case{2, 3, 64, 64, 32}, Case{2, 3, 64, 64, 32, BiasKind::kKeyMask, 0.1},
                                           Case{2, 2, 5, 7, 3, BiasKind::kNone, 0.5}, Case{1, 1, 1, 1, 1},
                                           Case{3, 2, 17, 33, 4, BiasKind::kKeyMask, 0.2},
                                           Case{2, 2, 9, 70, 80, BiasKind::kPosition},
                                           Case{2, 3, 24, 24, 64, BiasKind::kTrainedPosition, 0.1},
                                           Case{3, 2, 13, 11, 8, BiasKind::kTrainedPerHead, 0.3},
                                           Case{2, 2, 6, 10, 4, BiasKind::kTrainedFull, 0.1},
                                           Case{2, 2, 6, 10, 4, BiasKind::kTrainedForAllHeads},
                                           Case{2, 2, 40, 40, 16, BiasKind::kNone, 0.1, true},
                                           Case{1, 2, 150, 300, 12, BiasKind::kKeyMask, 0.1, true},
                                           Case{1, 2, 300, 150, 12, BiasKind::kTrainedPosition, 0.1, true},
                                           Case{1, 2, 200, 700, 128, BiasKind::kKeyMask, 0.1},
                                           Case{2, 3, 31, 31, 32, BiasKind::kKeyMask, 0.1, false, at::kBFloat16},
                                           Case{2, 3, 31, 31, 32, BiasKind::kTrainedPosition, 0.1, true, at::kBFloat16},
                                           Case{2, 3, 31, 31, 32, BiasKind::kNone, 0.1, false, at::kHalf}));

INSTANTIATE_TEST_SUITE_P(OtherTypes, AttentionCases,
                         ::testing::Values(Case{2, 3, 9, 9, 8, BiasKind::kNone, 0, true, at::kDouble},
                                           Case{2, 3, 9, 12, 8, BiasKind::kKeyMask, 0, true, at::kDouble},
                                           Case{2, 3, 9, 9, 8, BiasKind::kKeyMask, 0.2, false, at::kDouble},
                                           Case{2, 3, 12, 9, 5, BiasKind::kTrainedPosition, 0.2, true, at::kDouble},
                                           Case{2, 3, 5, 9, 8, BiasKind::kTrainedForAllHeads, 0, false, at::kDouble}));

/// With another number of padded keys in every batch.
Inputs make_padded(const Case& c) {
  Inputs in = make_inputs(c);
  Case keys = c;
  keys.bias = BiasKind::kKeyMask;
  in.options.key_bias = make_bias(keys).to(c.type);
  return in;
}

TEST(Attention, PiecesOfEverySizeEqualTheReference) {
  Case whole{3, 4, 5, 6, 4, BiasKind::kTrainedForAllHeads, 0.3};
  whole.type = at::kDouble;
  const Case padded{3, 4, 5, 6, 4, BiasKind::kTrainedPosition, 0.3, false, at::kDouble};
  for (const Inputs& in : {make_inputs(whole), make_padded(padded)}) {
    const auto expected = run(attention_reference, in);
    const at::NoGradGuard no_grad;
    // single rows; some rows of a head; some heads of a batch; some batches; all at once
    for (const std::int64_t piece_elements : {1, 20, 70, 250, 1000}) {
      const auto [out, log_sum_exp] =
          attention_forward_in_pieces(in.q, in.k, in.v, in.bias, in.options, piece_elements);
      EXPECT_LT(largest_error(out, expected[0]), 2e-7) << piece_elements;
      const AttentionGradients gradients =
          attention_backward_in_pieces(in.q, in.k, in.v, in.bias, in.options, log_sum_exp, in.grad,
                                       /*is_bias_wanted=*/true, piece_elements);
      EXPECT_LT(largest_error(gradients.q, expected[1]), 2e-7) << piece_elements;
      EXPECT_LT(largest_error(gradients.k, expected[2]), 2e-7) << piece_elements;
      EXPECT_LT(largest_error(gradients.v, expected[3]), 2e-7) << piece_elements;
      EXPECT_EQ(gradients.bias.sizes(), in.bias.sizes());
      EXPECT_LT(largest_error(gradients.bias, expected[4]), 2e-7) << piece_elements;
    }
  }
}

TEST(Attention, GradientEqualsFiniteDifferencesInDouble) {
  Case c{1, 2, 3, 4, 2, BiasKind::kTrainedPosition, 0.3};
  c.type = at::kDouble;
  const Inputs in = make_inputs(c);
  const auto gradients = run(attention, in);
  const std::vector<at::Tensor> points{in.q, in.k, in.v, in.bias};
  for (std::size_t which = 0; which < points.size(); ++which) {
    for (std::int64_t i = 0; i < points[which].numel(); ++i) {
      const auto loss = [&](double step) {
        std::vector<at::Tensor> moved;
        for (const at::Tensor& point : points) {
          moved.push_back(point.detach().contiguous().clone());
        }
        moved[which].view({-1})[i] += step;
        return (attention(moved[0], moved[1], moved[2], moved[3], in.options) * in.grad).sum().item<double>();
      };
      const double slope = (loss(1e-5) - loss(-1e-5)) / 2e-5;
      EXPECT_NEAR(gradients[which + 1].contiguous().view({-1})[i].item<double>(), slope, 1e-7) << which << " " << i;
    }
  }
}

TEST(Attention, GivesZerosAndZeroGradientsToRowsThatSeeNoKey) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kDouble}) {
    for (const double probability : {0.0, 0.2}) {
      for (const bool is_causal : {false, true}) {
        Case c{2, 2, 6, 6, 8, BiasKind::kKeyMask, probability, is_causal};
        c.type = type;
        Inputs in = make_inputs(c);
        in.bias = at::zeros({2, 1, 6, 6}, type);
        in.bias[0].fill_(-kInfinity);               // the first batch sees nothing
        in.bias[1].select(1, 2).fill_(-kInfinity);  // nor does the third query of the second
        const auto found = run(attention, in), expected = run(attention_reference, in_double(in));
        EXPECT_TRUE(at::equal(found[0][0], at::zeros_like(found[0][0])));
        EXPECT_TRUE(at::equal(found[0][1].select(1, 2), at::zeros({2, 8}, type)));
        EXPECT_TRUE(at::equal(found[1][0], at::zeros_like(found[1][0])));
        for (std::size_t i = 0; i < found.size(); ++i) {
          EXPECT_LT(largest_error(found[i], expected[i]), type == at::kBFloat16 ? 1.5e-2 : 2e-6) << i;
        }
      }
    }
  }
}

TEST(Attention, TakesALowFiniteBiasAsANumber) {
  Case c{1, 1, 4, 5, 8};
  Inputs in = make_inputs(c);
  in.bias = at::full({1, 1, 1, 5}, std::numeric_limits<float>::lowest());
  const at::Tensor out = attention(in.q, in.k, in.v, in.bias, in.options);
  EXPECT_LT(largest_error(out, in.v.detach().to(at::kDouble).mean(2, true).expand_as(out)), 1e-6);
}

TEST(Attention, ShowsANaNInsteadOfHidingIt) {
  Inputs in = make_inputs({1, 1, 4, 16, 8});
  const at::NoGradGuard no_grad;
  at::Tensor broken = in.q.detach().clone();
  broken.select(2, 1).fill_(std::numeric_limits<float>::quiet_NaN());
  const at::Tensor out = attention(broken, in.k, in.v, {}, in.options);
  EXPECT_TRUE(out.select(2, 1).isnan().all().item<bool>());
  EXPECT_FALSE(out.select(2, 0).isnan().any().item<bool>());
}

TEST(Attention, IsBitwiseTheSameForAnyThreadCountAndWithoutGradients) {
  const int threads = at::get_num_threads();
  for (const BiasKind bias : {BiasKind::kNone, BiasKind::kTrainedPosition, BiasKind::kTrainedFull}) {
    const Inputs in = make_inputs({3, 5, 100, 90, 24, bias, 0.1});
    at::set_num_threads(1);
    const auto one = run(attention, in);
    at::set_num_threads(2);
    const auto two = run(attention, in);
    for (std::size_t i = 0; i < one.size(); ++i) {
      EXPECT_TRUE(at::equal(one[i], two[i])) << i;
    }
    const at::NoGradGuard no_grad;
    EXPECT_TRUE(at::equal(attention(in.q, in.k, in.v, in.bias, in.options), one[0]));
  }
  at::set_num_threads(threads);
}

TEST(Attention, GivesEveryBatchTheSameBitsAloneAndInCompany) {
  // no dropout: its mask counts through the batch
  const Inputs in = make_inputs({4, 3, 20, 20, 16, BiasKind::kKeyMask});
  const at::NoGradGuard no_grad;
  const at::Tensor together = attention(in.q, in.k, in.v, in.bias, in.options);
  for (std::int64_t b = 0; b < 4; ++b) {
    const auto one = [&](const at::Tensor& t) { return t.narrow(0, b, 1); };
    EXPECT_TRUE(at::equal(attention(one(in.q), one(in.k), one(in.v), one(in.bias), in.options), one(together)));
  }
}

TEST(Attention, ReadsAnyStridesAndWritesTokensBeforeHeads) {
  const Inputs in = make_inputs({2, 3, 10, 12, 8, BiasKind::kPosition, 0.1});
  const auto views = run(attention, in);
  EXPECT_TRUE(views[0].transpose(1, 2).is_contiguous());
  for (std::size_t i = 1; i < 4; ++i) {
    EXPECT_TRUE(views[i].transpose(1, 2).is_contiguous()) << i;
  }
  const auto strided = [](const at::Tensor& t) {
    return t.detach().transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_();
  };
  Inputs odd{strided(in.q),
             strided(in.k),
             strided(in.v),
             in.bias.transpose(-1, -2).contiguous().transpose(-1, -2),
             at::ones({1, 1, 1, 1}).expand_as(in.grad),
             in.options};
  Inputs plain{in.q, in.k, in.v, in.bias, at::ones_like(in.grad), in.options};
  const auto found = run(attention, odd), expected = run(attention, plain);
  for (std::size_t i = 0; i < found.size(); ++i) {
    EXPECT_TRUE(at::equal(found[i], expected[i])) << i;
  }
}

TEST(Attention, SkipsTheGradientsThatNobodyWants) {
  const Inputs in = make_inputs({2, 2, 10, 10, 8, BiasKind::kNone, 0.1});
  const auto all = run(attention, in);
  for (std::size_t which = 0; which < 3; ++which) {
    std::vector<at::Tensor> leaves{in.q.detach(), in.k.detach(), in.v.detach()};
    leaves[which] = leaves[which].clone().requires_grad_();
    const at::Tensor out = attention(leaves[0], leaves[1], leaves[2], {}, in.options);
    EXPECT_TRUE(at::equal(torch::autograd::grad({out}, {leaves[which]}, {in.grad}).at(0), all[which + 1])) << which;
  }
}

TEST(Attention, KeepsOneNumberPerRowForTheBackwardAndNoScores) {
  install_counting_allocator();
  constexpr std::int64_t kTokens = 512, kHeads = 3;
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kDouble}) {
    Case c{1, kHeads, kTokens, kTokens, 4, BiasKind::kTrainedPosition, 0.1};
    c.type = type;
    const Inputs in = make_inputs(c);
    const std::int64_t before = allocated_bytes().current;
    at::Tensor out = attention(in.q, in.k, in.v, in.bias, in.options);
    out = out.sum();  // not even the output is kept
    const std::int64_t statistics = kHeads * kTokens * (type == at::kDouble ? 8 : 4);
    EXPECT_LE(allocated_bytes().current - before, statistics + 64) << type;
    EXPECT_GT(torch::autograd::grad({out}, {in.q}).at(0).abs().sum().item<double>(), 0);
  }
}

TEST(Attention, AddsTheKeyBiasToThePositionsForEveryType) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    for (const BiasKind bias : {BiasKind::kNone, BiasKind::kPosition, BiasKind::kTrainedPosition}) {
      for (const double probability : {0.0, 0.2}) {
        for (const bool is_causal : {false, true}) {
          const Case c{3, 2, 7, 7, 4, bias, probability, is_causal, type};
          const Inputs in = make_padded(c);
          const auto found = run(attention, in), expected = run(attention_reference, in_double(in));
          ASSERT_EQ(found.size(), expected.size());
          for (std::size_t i = 0; i < found.size(); ++i) {
            EXPECT_LT(largest_error(found[i], expected[i]), 2e-6) << c << " result " << i;
          }
        }
      }
    }
  }
}

TEST(Attention, KeepsNoSumOfItsTwoBiases) {
  install_counting_allocator();
  constexpr std::int64_t kTokens = 256, kHeads = 3, kBatch = 2;
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    const Inputs in = make_padded({kBatch, kHeads, kTokens, kTokens, 4, BiasKind::kTrainedPosition, 0.1, false, type});
    const std::int64_t before = allocated_bytes().current;
    at::Tensor out = attention(in.q, in.k, in.v, in.bias, in.options);
    out = out.sum();
    const std::int64_t statistics = kBatch * kHeads * kTokens * (type == at::kDouble ? 8 : 4);
    EXPECT_LE(allocated_bytes().current - before, statistics + 64) << type;
    EXPECT_GT(torch::autograd::grad({out}, {in.bias}).at(0).abs().sum().item<double>(), 0);
  }
}

TEST(AttentionReference, KeepsNoDropoutMaskWhereNothingIsDropped) {
  install_counting_allocator();
  constexpr std::int64_t kTokens = 256;
  const Inputs in = make_inputs({1, 2, kTokens, kTokens, 4});
  const std::int64_t before = allocated_bytes().current;
  const at::Tensor out = attention_reference(in.q, in.k, in.v, in.bias, in.options).sum();
  // The weights twice: as the softmax gives them, and with zeros in blind rows.
  EXPECT_LT(allocated_bytes().current - before, 5 * 2 * kTokens * kTokens * 4 / 2);
}

TEST(Attention, RunsForwardAndBackwardWithoutAScoreMatrixInMemory) {
  install_counting_allocator();
  constexpr std::int64_t kTokens = 512, kHeads = 3;
  const Inputs in = make_inputs({1, kHeads, kTokens, kTokens, 4, BiasKind::kNone, 0.1});
  const std::int64_t before = allocated_bytes().current;
  reset_peak_allocated_bytes();
  run(attention, in);
  EXPECT_LT(allocated_bytes().peak - before, kTokens * kTokens * 4 / 4);
}

TEST(Attention, TakesEmptyInputs) {
  const at::Tensor none = at::empty({2, 3, 0, 4}), some = at::randn({2, 3, 5, 4});
  EXPECT_EQ(attention(none, some, some, {}, {}).numel(), 0);
  EXPECT_TRUE(at::equal(attention(some, none, none, {}, {}), at::zeros_like(some)));
}

TEST(Attention, RefusesShapesThatDoNotFit) {
  const at::Tensor q = at::randn({1, 2, 3, 4}), k = at::randn({1, 2, 3, 5});
  EXPECT_THROW(attention(q, k, k, {}, {}), InternalError);
  EXPECT_THROW(attention(q, q, q.to(at::kDouble), {}, {}), InternalError);
}

}  // namespace
}  // namespace espalier::model
