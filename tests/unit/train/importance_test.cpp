// SPDX-License-Identifier: Apache-2.0
// LST that starts from Fisher information: the same start on every layout, and the one that its definition says.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "data/dataset.h"
#include "model/input_names.h"
#include "peft/lst_pruning.h"
#include "tiny_dataset.h"
#include "tiny_model.h"
#include "train/task.h"
#include "training_run.h"

namespace espalier::test {
namespace {

class FisherStart : public testing::TestWithParam<const char*>, protected TrainingRuns {
 protected:
  FisherStart() {
    const bool is_visual = GetParam() == std::string("clip_t5");
    const bool is_t5 = is_visual || GetParam() == std::string("t5");
    request_.model = write_tiny_model(
        {.family = GetParam(), .num_blocks = 3, .num_decoder_blocks = 2, .width = 16, .heads = 2, .ff = 24},
        folder_ / "model");
    request_.dataset = write_tiny_dataset(
        {.task = is_t5 ? "seq2seq" : "classification", .num_rows = 90, .longest = 12, .is_visual = is_visual},
        folder_ / "data.h5");
    request_.peft.method = "lst";
    request_.peft.lst = {.reduction = 2, .side_initial = "fisher", .fisher_rows = 37};
    request_.steps = 2;
  }
};

TEST_P(FisherStart, IsTheSameOnEveryLayout) {
  const auto expected = run("1x1", {1, 1});
  expect_same_bits(run("2x1", {2, 1}), expected, "2x1");
  expect_same_bits(run("1x2", {1, 2}), expected, "1x2");
  expect_same_bits(run("3x1", {3, 1}), expected, "3x1");
  request_.stop_at_step = 1;
  static_cast<void>(run("resumed", {2, 1}));
  request_.stop_at_step = 0;
  expect_same_bits(run("resumed", {1, 2}), expected, "stopped behind the start");
  request_.peft.lst.side_initial = "magnitude";
  EXPECT_NE(run("magnitude", {1, 1}).losses, expected.losses);
}

TEST_P(FisherStart, IsMeasuredInFp32WhateverTheWorkerComputesIn) {
  request_.steps = 1;  // whose learning rate is 0, so that what is trained is the start
  const auto expected = run("fp32", {1, 1});
  request_.compute_type = "bf16";
  const auto found = run("bf16", {1, 1});
  EXPECT_NE(found.losses, expected.losses);
  for (const auto& [name, tensor] : expected.trained) EXPECT_TRUE(at::equal(found.trained.at(name), tensor)) << name;
}

/// Squared gradients of one row after the other, added up in double by plain full fine-tuning on one stage; of the text
/// alone where there are images.
std::map<std::string, at::Tensor> importance_by_the_book(model::Backbone backbone, const model::WeightSource& weights,
                                                         const data::Dataset& dataset,
                                                         const std::vector<std::int64_t>& rows) {
  if (auto& embedding = backbone.chain.front().embedding) embedding->visual.reset();
  model::StageSlice slice(backbone, {0, backbone.num_layers()}, weights, {.seed = 7});
  const auto full = peft::make_method({.method = "full"}, slice, weights, 0);
  const auto& split = dataset.split("train");
  std::map<std::string, at::Tensor> sums;
  for (const auto row : rows) {
    auto inputs = split.collate({row}, 512, 8, 0);
    for (const auto* name : model::kVisualInputs) inputs.erase(name);
    const auto micro_batch = train::make_micro_batch(backbone, 0, inputs);
    auto result = full->forward({}, slice.prepare(micro_batch.inputs), {}, /*keeps_pass=*/true);
    const at::Tensor logits = result.outgoing.at("logits").detach().requires_grad_();
    const at::AutoGradMode with_gradient(true);
    train::task_loss(dataset.info().task, logits, micro_batch.inputs, split.num_targets(row, 512)).backward();
    std::map<std::string, at::Tensor> gradients;
    result.pass->backward({{"logits", logits.grad()}}, [&](int index, const at::Tensor& gradient) {
      const auto& name = full->trained()[static_cast<std::size_t>(index)].name;
      const auto [place, is_new] = gradients.emplace(name, gradient);
      if (!is_new) place->second = place->second + gradient;  // another place of a tied weight
    });
    for (const auto& [name, gradient] : gradients) {
      const auto square = gradient.to(at::kDouble).square();
      const auto [place, is_new] = sums.emplace(name, square);
      if (!is_new) place->second = place->second + square;
    }
  }
  return sums;
}

TEST_P(FisherStart, KeepsTheRowsOfLargestSummedSquaredGradient) {
  request_.learning_rate = 1e-30;  // what is trained is the start
  const auto found = run("1x1", {1, 1});
  const auto dataset = data::Dataset::open(request_.dataset);
  const auto backbone = model::read_backbone(request_.model, train::head_request(dataset.info(), "auto"));
  const auto weights = model::open_model_folder(request_.model);
  data::DataConfig data;  // as run_training() has it
  data.global_batch_size = 12;
  data.micro_batch_size = 3;
  std::vector<std::int64_t> rows;
  const data::Sampler sampler(dataset.split("train").num_rows(), /*seed=*/7, data, {});
  for (std::int64_t step = 0; rows.size() < 37; ++step) {
    for (const auto& micro_batch : sampler.batch(step).micro_batches) {
      rows.insert(rows.end(), micro_batch.begin(), micro_batch.end());
    }
  }
  rows.resize(37);
  const auto importance = importance_by_the_book(backbone, *weights, dataset, rows);
  std::vector<std::int64_t> kept;
  const auto read = [&](const model::LayerPlan& layer, const std::string& role) {
    return weights->get(backbone.family->stored_weight(layer, role).names.front());
  };
  const auto score = [&](const model::LayerPlan& layer, const std::string& role) {
    return importance.at(layer.name + "." + role);
  };
  const auto pruned = peft::prune_layers(
      backbone, {0, backbone.num_layers()}, {.reduction = 2}, read, score, [](const auto& /*layer*/) { return true; },
      kept);
  int compared = 0;
  for (const auto& [index, layer] : pruned) {
    const auto& plan = backbone.layer(static_cast<int>(index));
    for (const auto& [role, value] : layer) {
      const auto name = "lst." + plan.name + (plan.block ? ".block." : ".") + role;
      EXPECT_TRUE(at::equal(found.trained.at(name), value)) << name;
      ++compared;
    }
  }
  EXPECT_GT(compared, 30);
}

INSTANTIATE_TEST_SUITE_P(Families, FisherStart, testing::Values("bert", "t5", "clip_t5"),
                         [](const auto& tested) { return std::string(tested.param); });

}  // namespace
}  // namespace espalier::test
