// SPDX-License-Identifier: Apache-2.0
// What an optimizer step of a run clips, and what its loss consists of.
#include "train/training_step.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tiny_dataset.h"
#include "tiny_model.h"
#include "train/task.h"
#include "training_run.h"

namespace espalier::test {
namespace {

/// Two steps on the same rows without dropout, of which the first has a learning rate of 0, so that the gradients of
/// both are equal. Beside so large an epsilon the second moments are nothing: the second step takes the gradient itself
/// away.
class Clipping : public testing::Test, protected TrainingRuns {
 protected:
  Clipping() {
    request_.model = write_tiny_model({.dropout = 0}, folder_ / "model");
    request_.dataset = write_tiny_dataset({.num_rows = 12}, folder_ / "data.h5");  // one global batch
    request_.steps = 2;
    request_.epsilon = request_.learning_rate = 1e4;
    request_.restore_best = false;
  }
  void add(const std::string& name, const peft::MethodConfig& peft) {
    auto optimizer = request_.optimizer();
    optimizer.clip_norm = 0;
    request_.objectives.push_back({.name = name, .peft = peft, .optimizer = optimizer});
  }
  /// Before anything moves.
  RunOutcome run_start() {
    request_.stop_at_step = 1;
    auto outcome = run("start", {1, 1});
    request_.stop_at_step = 0;
    return outcome;
  }
  /// The norm of both steps.
  static double norm_of(const RunOutcome& outcome) {
    const double norm = outcome.gradient_norms.at(1);
    EXPECT_NEAR(outcome.gradient_norms.at(0), norm, 1e-4 * norm);
    return norm;
  }
  /// What the run `found` added to `start` is `share` of what `whole` added.
  static void expect_share(const RunOutcome& found, const RunOutcome& whole, const RunOutcome& start, double share) {
    double largest = 0;
    for (const auto& [name, tensor] : start.trained) {
      const at::Tensor expected = (whole.trained.at(name) - tensor) * share;
      EXPECT_TRUE(at::allclose(found.trained.at(name) - tensor, expected, /*rtol=*/1e-2, /*atol=*/1e-6)) << name;
      largest = std::max(largest, expected.abs().max().item<double>());
    }
    EXPECT_GT(largest, 1e-3);
  }
};

TEST_F(Clipping, ScalesTheGradientOfAllStagesDownToItsNorm) {
  add("", {.method = "full"});
  const auto start = run_start(), whole = run("whole", {1, 1});
  const double norm = norm_of(whole);
  request_.objectives.front().optimizer.clip_norm = norm / 4;
  const auto clipped = run("clipped", {2, 1});
  EXPECT_NEAR(norm_of(clipped), norm, 1e-4 * norm) << "what is reported is the norm before";
  expect_share(clipped, whole, start, 0.25);
  request_.objectives.front().optimizer.clip_norm = 2 * norm;
  expect_share(run("below", {1, 1}), whole, start, 1);
}

TEST_F(Clipping, TakesTheNormOfEachObjectiveByItself) {
  add("wide", {.method = "lst", .lst = {.reduction = 2}});
  add("narrow", {.method = "lst", .lst = {.reduction = 4}});
  const auto start = run_start(), whole = run("whole", {1, 1});
  const auto share_in = [&](const RunOutcome& joint, const std::string& run_name, const std::string& name) {
    return share_of(joint, name, folder_ / run_name);
  };
  request_.objectives[0].optimizer.clip_norm = norm_of(share_in(whole, "whole", "wide")) / 4;
  request_.objectives[1].optimizer.clip_norm = norm_of(share_in(whole, "whole", "narrow")) / 2;
  const auto clipped = run("clipped", {2, 1});
  for (const auto& [name, share] : {std::pair("wide", 0.25), std::pair("narrow", 0.5)}) {
    SCOPED_TRACE(name);
    expect_share(share_in(clipped, "clipped", name), share_in(whole, "whole", name), share_in(start, "start", name),
                 share);
  }
}

class Distillation : public testing::Test, protected TrainingRuns {};

TEST_F(Distillation, AddsItsWeightTimesTheDivergenceFromTheBareBackboneToTheLoss) {
  constexpr std::int64_t kRows = 12;  // one global batch
  request_.model = write_tiny_model(
      {.family = "t5", .num_blocks = 2, .num_decoder_blocks = 2, .width = 16, .heads = 2, .ff = 24, .dropout = 0},
      folder_ / "model");
  request_.dataset = write_tiny_dataset({.task = "seq2seq", .num_rows = kRows, .longest = 12}, folder_ / "data.h5");
  request_.peft = {.method = "lst", .lst = {.reduction = 2}};
  request_.steps = 1;
  const double without = run("without", {2, 1}).losses.at(0);
  request_.peft.lst.distill_weight = 0.5;
  const double with = run("with", {2, 1}).losses.at(0);

  const at::NoGradGuard no_grad;
  const auto dataset = data::Dataset::open(request_.dataset);
  const auto backbone = model::read_backbone(request_.model, train::head_request(dataset.info(), "auto"));
  const auto weights = model::open_model_folder(request_.model);
  const model::LayerRange whole{0, backbone.num_layers()};
  const model::StageSlice bare(backbone, whole, *weights, {});
  model::StageSlice slice(backbone, whole, *weights, {});
  const auto method = peft::make_method(request_.peft, slice, *weights, /*seed=*/7);  // as run_training() has it
  std::vector<std::int64_t> rows(kRows);
  std::iota(rows.begin(), rows.end(), 0);
  const auto batch = train::make_micro_batch(backbone, 0, dataset.split("train").collate(rows, 512, 8, 0));
  const auto inputs = bare.prepare(batch.inputs);
  const at::Tensor logits = method->forward({}, inputs, {}, /*keeps_pass=*/false).outgoing.at("logits").to(at::kDouble);
  model::Carry carry;
  for (const auto& layer : bare.layers()) layer->forward(carry, inputs, {});
  const at::Tensor wanted = at::log_softmax(carry.at("logits").to(at::kDouble) / 0.1, -1);  // sharpened, as published
  const at::Tensor divergence = (wanted.exp() * (wanted - at::log_softmax(logits, -1))).sum(-1);  // [B, U]
  const double sum = (divergence * batch.inputs.at("labels").ne(-100)).sum().item<double>();
  ASSERT_GT(sum, 1);
  EXPECT_NEAR(with - without, 0.5 * sum / kRows, 1e-4 * sum / kRows);
}

}  // namespace
}  // namespace espalier::test
