// SPDX-License-Identifier: Apache-2.0
// A weight with several places in the chain (the tables of T5, on up to three stages) trains, counts and is saved as
// the one tensor that its folder stores.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <spdlog/fmt/fmt.h>

#include <cmath>
#include <numeric>

#include "checkpoint/store.h"
#include "temporary_folder.h"
#include "tiny_dataset.h"
#include "tiny_model.h"
#include "train/task.h"
#include "training_run.h"

namespace espalier::test {
namespace {

constexpr std::int64_t kRows = 12;  // one global batch
constexpr Layout kLayouts[] = {{1, 1}, {2, 1}, {3, 1}, {3, 2}};

class TiedTraining : public testing::Test {
 protected:
  TiedTraining() {
    request_.model = write_tiny_model(
        {.family = "t5", .num_blocks = 3, .num_decoder_blocks = 2, .width = 16, .heads = 2, .ff = 24, .dropout = 0},
        folder_ / "model");
    request_.dataset = write_tiny_dataset({.task = "seq2seq", .num_rows = kRows}, folder_ / "data.h5");
    request_.peft.method = "full";
    request_.steps = 2;
    const auto weights = model::open_model_folder(request_.model);
    for (const auto& name : weights->names()) {
      num_stored_ += weights->get(name).numel();
    }
  }
  RunOutcome run(Layout layout) {
    request_.folder = folder_ / fmt::format("{}_{}x{}", request_.peft.method, layout.stages, layout.replicas);
    return run_training(request_, layout);
  }

  TemporaryFolder folder_;
  RunRequest request_;
  std::int64_t num_stored_ = 0;
};

TEST_F(TiedTraining, TakesTheNormOfTheSummedGradients) {
  const auto dataset = data::Dataset::open(request_.dataset);
  const auto backbone = model::read_backbone(request_.model, train::head_request(dataset.info(), "auto"));
  const auto weights = model::open_model_folder(request_.model);
  model::StageSlice slice(backbone, {0, backbone.num_layers()}, *weights, {});
  const auto method = peft::make_method(request_.peft, slice, *weights, /*seed=*/7);
  std::vector<std::int64_t> rows(kRows);
  std::iota(rows.begin(), rows.end(), 0);
  const auto& split = dataset.split("train");
  std::int64_t num_targets = 0;
  for (const auto row : rows) num_targets += split.num_targets(row, 512);
  const auto batch = train::make_micro_batch(backbone, 0, split.collate(rows, 512, 8, 0));
  auto result = method->forward({}, slice.prepare(batch.inputs), {.is_training = true, .key = {}}, /*keeps_pass=*/true);
  // d(cross-entropy) / d(logits), by hand
  const auto& labels = batch.inputs.at("labels");
  const auto counts = labels.ne(-100).unsqueeze(-1);
  const auto& logits = result.outgoing.at("logits");
  const auto error = (at::softmax(logits, -1) - at::one_hot(labels.clamp_min(0), logits.size(-1))) * counts;
  std::map<std::string, at::Tensor> sums;
  double square_of_all_places = 0;
  result.pass->backward({{"logits", error / num_targets}}, [&](int index, const at::Tensor& gradient) {
    auto& sum = sums[method->trained()[static_cast<std::size_t>(index)].name];
    sum = sum.defined() ? sum + gradient : gradient;
    square_of_all_places += gradient.square().sum().item<double>();
  });
  double square = 0;
  for (const auto& [name, sum] : sums) square += sum.square().sum().item<double>();
  const double expected = std::sqrt(square);
  ASSERT_GT(std::abs(std::sqrt(square_of_all_places) - expected), 1e-3 * expected) << "the test would not see a tie";

  for (const auto layout : kLayouts) {
    EXPECT_NEAR(run(layout).gradient_norms.front(), expected, 1e-5 * expected) << layout.stages << " stages";
  }
}

TEST_F(TiedTraining, CountsAndSavesEachStoredTensorOnce) {
  for (const auto layout : kLayouts) {
    SCOPED_TRACE(layout.stages);
    const auto outcome = run(layout);
    EXPECT_EQ(outcome.summary.at("trained_parameters").get<std::int64_t>(), num_stored_);
    EXPECT_EQ(outcome.summary.at("frozen_parameters").get<std::int64_t>(), 0);
    const auto loaded = checkpoint::open_checkpoint(train::RunFolder(request_.folder).checkpoints() / "step_00000002");
    std::map<std::string, std::int64_t> saved;
    for (const auto& name : loaded->names()) {
      const auto& shape = loaded->entry(name).shape;
      saved[name.substr(0, name.find('/'))] +=
          std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
    }
    EXPECT_EQ(saved.at("trained"), num_stored_);
    EXPECT_EQ(saved.at("optimizer"), 2 * num_stored_);
    EXPECT_EQ(saved.at("best"), num_stored_);
  }
}

TEST_F(TiedTraining, CountsAFrozenTensorOnceOnAnyLayout) {
  request_.peft.method = "lora";
  request_.peft.lora.rank = 2;
  for (const auto layout : kLayouts) {
    EXPECT_EQ(run(layout).summary.at("frozen_parameters").get<std::int64_t>(), num_stored_) << layout.stages;
  }
}

TEST_F(TiedTraining, SendsTheGradientOfATableOnlyWhereStagesShareIt) {
  const auto table_bytes = 4 * 50 * 16;  // vocabulary x width, fp32
  EXPECT_FALSE(run({1, 1}).traffic.contains("send/tied_gradient"));
  // The first stage of two has the encoder's and the decoder's table and sends their sum to the head, once a step.
  EXPECT_EQ(run({2, 1}).traffic.at("send/tied_gradient"), 2 * table_bytes);
  request_.peft.method = "lora";
  request_.peft.lora.rank = 2;
  EXPECT_FALSE(run({2, 1}).traffic.contains("send/tied_gradient"));
}

}  // namespace
}  // namespace espalier::test
