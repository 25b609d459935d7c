// SPDX-License-Identifier: Apache-2.0
// Promise 1: the layout does not change the result, and neither does stopping and going on with another one.
#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <gtest/gtest.h>

#include <mutex>

#include "tiny_dataset.h"
#include "tiny_model.h"
#include "training_run.h"

namespace espalier::test {
namespace {

constexpr Layout kLayouts[] = {{2, 1}, {1, 2}, {2, 2}, {4, 1}, {1, 4}, {3, 1}, {1, 3}};

std::string name_of(Layout layout) {
  return std::to_string(layout.stages) + "x" + std::to_string(layout.replicas);
}

class Layouts : public testing::TestWithParam<const char*>, protected TrainingRuns {
 protected:
  Layouts() {
    request_.model = write_tiny_model({}, folder_ / "model");
    request_.dataset = write_tiny_dataset({}, folder_ / "data.h5");
    request_.peft.method = GetParam();
    request_.peft.adapter.rank = 4;
    request_.peft.rosa.every_steps = 4;
    request_.pooling = request_.peft.method == "probe" ? "mean" : "auto";
  }
  /// What the method gives on one rank; trained once for all tests.
  const RunOutcome& on_one_rank() {
    static std::map<std::string, RunOutcome> outcomes;
    const auto found = outcomes.find(GetParam());
    return found != outcomes.end() ? found->second : outcomes.emplace(GetParam(), run("1x1", {1, 1})).first->second;
  }
};

TEST_P(Layouts, GiveTheSameLossesAndWeightsBitForBit) {
  const auto& expected = on_one_rank();
  ASSERT_EQ(expected.losses.size(), 20);
  expect_trained(expected);
  for (const auto layout : kLayouts) {
    expect_same_bits(run(name_of(layout), layout), expected, name_of(layout));
  }
}

TEST_P(Layouts, MayChangeBetweenStopAndResume) {
  const auto& expected = on_one_rank();
  request_.stop_at_step = 10;
  const auto first = run("resumed", {2, 1});
  ASSERT_EQ(first.losses.size(), 10);
  EXPECT_TRUE(first.summary.at("is_stopped").get<bool>());
  request_.stop_at_step = 0;
  expect_same_bits(run("resumed", {2, 2}), expected, "10 steps on 2x1, 10 on 2x2");
}

TEST_P(Layouts, ScheduleAndGradientStrategyDoNotChangeTheResult) {
  const auto& expected = on_one_rank();
  request_.schedule = "gpipe";
  request_.strategy = "naive";
  expect_same_bits(run("gpipe", {2, 2}), expected, "gpipe, naive");
}

INSTANTIATE_TEST_SUITE_P(Methods, Layouts, testing::Values("lst", "lora", "adapter", "bitfit", "rosa", "full", "probe"),
                         [](const auto& tested) { return std::string(tested.param); });

// What has happened, in order: 'L' for the loss of a micro-batch, 'B' for a norm on the way back.
std::string noted_events;
std::mutex noted_events_mutex;

std::unique_ptr<at::ObserverContext> note_event(const at::RecordFunction& function) {
  const std::string_view name = function.name();
  const bool is_loss = name == "aten::cross_entropy_loss";
  if (is_loss || name == "aten::native_layer_norm_backward") {
    const std::lock_guard lock(noted_events_mutex);
    noted_events += is_loss ? 'L' : 'B';
  }
  return nullptr;
}

TEST(Schedule, DecidesHowManyMicroBatchesWaitForTheirBackward) {
  const TemporaryFolder folder;
  RunRequest request;
  request.model = write_tiny_model({}, folder / "model");
  request.dataset = write_tiny_dataset({.num_rows = 12}, folder / "data.h5");  // one batch of four micro-batches
  request.peft.method = "full";
  request.steps = 1;
  for (const auto& [schedule, losses] : {std::pair("1f1b", "L"), std::pair("gpipe", "LLLL")}) {
    request.schedule = schedule;
    request.folder = folder / schedule;
    noted_events.clear();
    const auto handle =
        at::addGlobalCallback(at::RecordFunctionCallback(&note_event).scopes({at::RecordScope::FUNCTION}));
    static_cast<void>(run_training(request, {2, 1}));
    at::removeCallback(handle);
    ASSERT_NE(noted_events.find('B'), std::string::npos);
    EXPECT_EQ(noted_events.substr(0, noted_events.find('B')), losses) << schedule;
  }
}

TEST(Traffic, OnlyTrainedBytesAreReduced) {
  const TemporaryFolder folder;
  RunRequest request;
  request.model = write_tiny_model({}, folder / "model");
  request.dataset = write_tiny_dataset({}, folder / "data.h5");
  request.peft.adapter.rank = request.peft.prompt.tokens = 4;
  request.steps = 2;
  for (const auto& method : peft::method_names()) {
    SCOPED_TRACE(method);
    request.folder = folder / method;
    request.peft.method = method;
    request.pooling = method == "probe" ? "mean" : "auto";
    const auto outcome = run_training(request, {1, 2});
    std::int64_t trained_bytes = 0;
    for (const auto& [name, tensor] : outcome.trained) {
      // ROSA keeps the rest of a weight beside its factors.
      const bool is_kept = method == "rosa" && outcome.trained.contains(name.substr(0, name.rfind('.')) + ".rosa_a") &&
                           name.ends_with(".weight");
      trained_bytes += is_kept ? 0 : static_cast<std::int64_t>(tensor.nbytes());
    }
    EXPECT_GT(trained_bytes, 0);
    EXPECT_EQ(outcome.summary.at("reduced_bytes_per_step").at(0).get<std::int64_t>(), trained_bytes);
    const auto frozen_bytes = outcome.summary.at("frozen_parameters").get<std::int64_t>() * 4;
    if (method == "full") {
      EXPECT_EQ(frozen_bytes, 0);
    } else {
      EXPECT_LT(trained_bytes, frozen_bytes);
    }
  }
}

TEST(Training, LearnsAndKeepsTheBestWeights) {
  const TemporaryFolder folder;
  RunRequest request;
  request.model = write_tiny_model({}, folder / "model");
  request.dataset = write_tiny_dataset({.num_rows = 300}, folder / "data.h5");
  request.folder = folder / "run";
  request.peft.method = "full";
  request.steps = 60;
  request.evaluate_every_steps = 10;
  request.learning_rate = 3e-3;
  const auto outcome = run_training(request, {2, 1});
  EXPECT_LT(outcome.losses.back(), outcome.losses.front());
  EXPECT_GT(outcome.summary.at("test").at("accuracy").get<double>(),
            outcome.summary.at("test").at("majority").get<double>());
}

TEST(Training, StopsEarlyWithoutABetterEvaluation) {
  const TemporaryFolder folder;
  RunRequest request;
  request.model = write_tiny_model({}, folder / "model");
  request.dataset = write_tiny_dataset({}, folder / "data.h5");
  request.folder = folder / "run";
  request.peft.method = "probe";
  request.pooling = "mean";
  request.learning_rate = 1e-12;
  request.evaluate_every_steps = 2;
  request.patience = 3;
  const auto outcome = run_training(request, {1, 1});
  EXPECT_EQ(outcome.summary.at("steps").get<int>(), 8);
}

TEST(Training, SaysSoWhenTheWarmUpNeverEnds) {
  const TemporaryFolder folder;
  RunRequest request;
  request.model = write_tiny_model({}, folder / "model");
  request.dataset = write_tiny_dataset({}, folder / "data.h5");
  request.peft.method = "probe";
  request.pooling = "mean";
  for (const int steps : {1, 2}) {
    request.steps = steps;  // of which the default warms up one
    request.folder = folder / std::to_string(steps);
    testing::internal::CaptureStderr();
    static_cast<void>(run_training(request, {2, 1}));
    const auto said = testing::internal::GetCapturedStderr();
    EXPECT_EQ(said.find("the warm-up covers the whole run of 1 steps") != std::string::npos, steps == 1) << said;
    EXPECT_EQ(said.find("warm-up"), said.rfind("warm-up covers")) << "once, of all ranks";
  }
}

TEST(Training, RegressionReportsCorrelations) {
  const TemporaryFolder folder;
  RunRequest request;
  request.model = write_tiny_model({.num_labels = 1}, folder / "model");
  request.dataset = write_tiny_dataset({.task = "regression"}, folder / "data.h5");
  request.folder = folder / "run";
  request.peft.method = "lst";
  const auto outcome = run_training(request, {2, 1});
  for (const auto* metric : {"spearman", "pearson", "correlation"}) {
    EXPECT_TRUE(outcome.summary.at("test").contains(metric)) << metric;
  }
  EXPECT_LT(outcome.losses.back(), outcome.losses.front());
}

}  // namespace
}  // namespace espalier::test
