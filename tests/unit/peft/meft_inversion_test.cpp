// SPDX-License-Identifier: Apache-2.0
// What a reversible pass keeps, and what inverting it in floating point costs.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "common/error.h"
#include "meft_recurrence.h"
#include "peft/meft.h"

namespace espalier::peft {
namespace {

using ::testing::HasSubstr;

TEST(FloatInversion, IsRefusedAboveItsLimit) {
  const TinyModel tiny = make_tiny(of_depth(12));
  Stages stages(tiny, meft(1, {.inversion = "float"}), 1);
  try {
    static_cast<void>(stages.step(make_batch(), measured_context()));
    ADD_FAILURE() << "12 blocks were inverted in fp32";
  } catch (const NumericError& error) {
    EXPECT_THAT(error.what(), HasSubstr("encoder.0: expected inverted streams with a relative error"));
    EXPECT_THAT(error.what(), HasSubstr("peft.meft.inversion=exact"));
  }
}

TEST(AnchoredInversion, StartsAgainFromEveryAnchor) {
  const TinyModel tiny = make_tiny(of_depth(12));
  const MethodConfig config = meft(1, {.inversion = "anchored", .anchor_layers = 2});
  Stages whole(tiny, config, 1);
  const Step expected = whole.step(make_batch(), measured_context());
  EXPECT_LT(inversion_error(whole), 1e-4);
  const MethodConfig cached = meft(1, {.reversible_layers = 0, .inversion = "float"});
  EXPECT_LT(gradient_error(expected, Stages(tiny, cached, 1).step(make_batch(), measured_context())), 1e-3);
  for (const int num_stages : {2, 3, 6}) {
    expect_same_bits(Stages(tiny, config, num_stages).step(make_batch(), measured_context()), expected);
  }
}

TEST(MeftMethod, ReportsStreamsThatLeaveTheirRange) {
  const TinyModel tiny = make_tiny({});
  Stages stages(tiny, meft(1, {.fraction_bits = 28}), 1);
  stages.trained("encoder.2.rev_adapter.up.bias").detach().fill_(9);
  try {
    static_cast<void>(stages.step(make_batch(), training_context()));
    ADD_FAILURE() << "9 does not fit into +-8";
  } catch (const NumericError& error) {
    EXPECT_THAT(error.what(), HasSubstr("encoder.2: expected streams within +-8"));
  }
}

TEST(MeftMethod, KeepsTheRemaindersOfABlockAndNoMore) {
  constexpr std::int64_t kElements = 3 * 8 * 16;
  for (const std::int64_t variant : {1, 2, 3}) {
    SCOPED_TRACE(variant);
    const auto shallow = used_bytes(of_depth(6), meft(variant)), deep = used_bytes(of_depth(12), meft(variant));
    const std::int64_t remainders = 6 * (variant == 3 ? 2 : 1) * kElements / 2;  // 4 bits each
    EXPECT_EQ(deep.kept - shallow.kept, remainders);
    EXPECT_EQ(deep.peak - shallow.peak, remainders);
    const auto whole = meft(variant, {.lambda = 1, .beta = 1});
    EXPECT_EQ(used_bytes(of_depth(12), whole).kept, used_bytes(of_depth(6), whole).kept);

    const auto cached = meft(variant, {.reversible_layers = 0});
    EXPECT_GT(used_bytes(of_depth(12), cached).kept - used_bytes(of_depth(6), cached).kept, 6 * 10 * kElements * 4);
  }
}

TEST(InversionCheck, TakesNoOtherBitWhereTheInversionIsExact) {
  InversionCheck check(/*error_limit=*/0);
  const Streams expected{at::arange(6, at::kInt), at::arange(6, at::kInt)};
  check.compare(expected, expected, "encoder.3");
  EXPECT_EQ(check.error(), 0);
  Streams found{expected.first, expected.second.clone()};
  found.second[4] += 1;
  EXPECT_THROW(check.compare(found, expected, "encoder.3"), InternalError);
}

TEST(FloatInversion, MeasuresItsErrorByStepAndMicroBatchWhateverElseThisProcessRan) {
  const TinyModel tiny = make_tiny(of_depth(2));
  Stages stages(tiny, meft(1, {.inversion = "float", .error_limit = 1e9}), 1);
  const auto run = [&](std::uint64_t step, std::uint64_t micro_batch) {
    model::ForwardContext context = training_context();
    context.key.step = step;
    context.key.micro_batch = micro_batch;
    static_cast<void>(stages.step(make_batch(), context));
    return stages.methods.front()->inversion_error();
  };
  EXPECT_FALSE(run(63, 0).has_value()) << "a resumed process begins anywhere";
  EXPECT_FALSE(run(64, 1).has_value()) << "another replica has the first micro-batch";
  const auto first = run(64, 0);
  ASSERT_TRUE(first.has_value());
  for (const TrainedTensor& tensor : stages.trained()) {
    if (tensor.name.find("adapter") != std::string::npos) tensor.value.detach().mul_(300);
  }
  EXPECT_EQ(run(65, 0), first);
  EXPECT_EQ(run(128, 3), first);
  EXPECT_GT(run(128, 0).value(), 2 * *first);
}

/// The largest error of an inversion of so many blocks.
double error_of_depth(const TinyModel& tiny, std::int64_t variant, std::int64_t num_reversible, MeftConfig options) {
  options.inversion = "float";
  options.reversible_layers = num_reversible;
  options.error_limit = 1e9;
  Stages stages(tiny, meft(variant, options), 1);
  static_cast<void>(stages.step(make_batch(), measured_context()));
  return inversion_error(stages);
}

TEST(FloatInversion, MultipliesItsErrorByOneOverLambdaAndOneOverBetaForEachBlockOfMeft3) {
  const TinyModel tiny = make_tiny(of_depth(12));
  const double growth = std::sqrt(error_of_depth(tiny, 3, 3, {}) / error_of_depth(tiny, 3, 1, {}));
  EXPECT_GT(growth, 25);
  EXPECT_LT(growth, 400);
}

TEST(FloatInversion, MultipliesItsErrorByOneOverLambdaForEachBlock) {
  const TinyModel tiny = make_tiny(of_depth(12));
  const auto error = [&](std::int64_t num_reversible, const MeftConfig& options) {
    return error_of_depth(tiny, 1, num_reversible, options);
  };
  EXPECT_LT(error(1, {}), 1e-5);
  EXPECT_GT(error(6, {}), 1e-3);
  const double growth = std::pow(error(6, {}) / error(2, {}), 1.0 / 4);
  EXPECT_GT(growth, 4);
  EXPECT_LT(growth, 25);
  EXPECT_LT(error(6, {.lambda = 0.5}), 1e-3);
}

}  // namespace
}  // namespace espalier::peft
