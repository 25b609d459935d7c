// SPDX-License-Identifier: Apache-2.0
// Options reach everything that they speak of, and are refused where they would reach nothing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "stages.h"

namespace espalier::peft {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(DropPath, IsRefusedWhereTheFrozenBackboneDropsNothing) {
  const TinyModel tiny = make_tiny({});
  const auto error_of = [&](const MethodConfig& method, double drop_path) {
    return config_error([&] { Stages(tiny, method, 2, {.drop_path = drop_path}); });
  };
  const MethodConfig probe{.method = "probe"}, drops{.method = "lst", .lst = {.reduction = 4}};
  MethodConfig without = drops;
  without.lst.backbone_dropout = false;
  EXPECT_THAT(error_of(probe, 0.2), AllOf(HasSubstr("model.drop_path: expected 0 with peft.method=probe"),
                                          HasSubstr("found 0.2"), HasSubstr("leave model.drop_path out")));
  EXPECT_THAT(error_of(without, 0.2), AllOf(HasSubstr("peft.lst.backbone_dropout=false"), HasSubstr("found 0.2")));
  for (const MethodConfig& method : {probe, without}) EXPECT_EQ(error_of(method, 0), "");
  EXPECT_EQ(error_of(drops, 0.2), "");
}

TEST(FactorsDecay, HoldsForWeightsThatTrainWholeInPlaceOfFactorsToo) {
  const TinyModel tiny = make_tiny({});
  for (const bool factors_decay : {true, false}) {
    MethodConfig config{.method = "rosa"};
    config.rosa.rank = 16;  // the smaller width of every linear
    config.rosa.targets = {"attention.query", "feed_forward.up"};
    config.rosa.factors_decay = factors_decay;
    int num_whole = 0;
    for (const TrainedTensor& tensor : Stages(tiny, config, 1).trained()) {
      if (!tensor.name.starts_with("encoder.")) continue;
      ++num_whole;
      EXPECT_TRUE(tensor.name.ends_with(".weight")) << tensor.name;
      EXPECT_EQ(tensor.decays, factors_decay) << tensor.name;
    }
    EXPECT_EQ(num_whole, 4 * 2);
  }
}

}  // namespace
}  // namespace espalier::peft
