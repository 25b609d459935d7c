// SPDX-License-Identifier: Apache-2.0
// Several side networks on one frozen forward: each is the run that it would be alone, on any layout, and the backbone
// is run once.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/record_function.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "common/error.h"
#include "dist/solo_communicator.h"
#include "model/loss.h"
#include "tiny_dataset.h"
#include "tiny_model.h"
#include "training_run.h"

namespace espalier::test {
namespace {

class Objectives : public testing::Test, protected TrainingRuns {
 protected:
  Objectives() {
    request_.model = write_tiny_model({}, folder_ / "model");
    request_.dataset = write_tiny_dataset({.has_score = true}, folder_ / "data.h5");
    add("wide", {.method = "lst", .seed = 3, .lst = {.reduction = 2}}, 1e-2);
    add("narrow", {.method = "lst", .lst = {.reduction = 4, .layers = {1, 3}}}, 3e-3);
    add("low_rank", {.method = "last", .seed = 5, .last = {.rank = 4, .group_size = 2}}, 1e-2);
    add("score", {.method = "last", .last = {.rank = 2}}, 1e-2);
    request_.label_columns["score"] = "score";
  }

  void add(const std::string& name, const peft::MethodConfig& peft, double learning_rate) {
    auto optimizer = request_.optimizer();
    optimizer.learning_rate = learning_rate;
    optimizer.weight_decay = name == "wide" ? 0.1 : 0;
    request_.objectives.push_back({.name = name, .peft = peft, .optimizer = optimizer});
  }

  /// The run of one objective alone.
  RunOutcome run_alone(const std::string& name, Layout layout = {}) {
    auto request = request_;
    std::erase_if(request.objectives, [&](const auto& objective) { return objective.name != name; });
    request.objectives.front().name.clear();
    request.label_columns = {{"", request_.label_columns[name]}};
    request.folder = folder_ / ("alone_" + name);
    return run_training(request, layout);
  }

  /// The losses and weights of every objective of the run `name` are those that it has alone.
  void expect_as_alone(const RunOutcome& joint, const std::string& run_name) {
    for (const auto& objective : request_.objectives) {
      if (!alone_.contains(objective.name)) alone_.emplace(objective.name, run_alone(objective.name));
      const auto own = share_of(joint, objective.name, folder_ / run_name);
      const auto& expected = alone_.at(objective.name);
      expect_same_bits(own, expected, run_name + ", " + objective.name);
      EXPECT_EQ(own.summary.at("test"), expected.summary.at("test")) << run_name << ", " << objective.name;
      EXPECT_EQ(own.summary.at("best"), expected.summary.at("best")) << run_name << ", " << objective.name;
      EXPECT_EQ(own.summary.at("trained_parameters"), expected.summary.at("trained_parameters")) << objective.name;
    }
  }

  std::map<std::string, RunOutcome> alone_;
};

TEST_F(Objectives, GiveTheBitsThatEachGivesAloneOnAnyLayout) {
  for (const Layout layout : {Layout{1, 1}, {2, 1}, {1, 2}, {2, 2}, {3, 1}}) {
    const auto name = std::to_string(layout.stages) + "x" + std::to_string(layout.replicas);
    expect_as_alone(run(name, layout), name);
  }
  const auto usual = request_;
  request_.schedule = "gpipe";
  request_.strategy = "naive";
  expect_as_alone(run("gpipe", {2, 2}), "gpipe");
  request_ = usual;
  request_.stop_at_step = 10;
  run("resumed", {2, 1});
  request_.stop_at_step = 0;
  expect_as_alone(run("resumed", {3, 1}), "resumed");
}

TEST_F(Objectives, EndAloneWhenOneDiverges) {
  request_.objectives[1].optimizer.learning_rate = 1e30;
  request_.objectives[1].optimizer.clip_norm = 0;
  const auto joint = run("joint", {2, 1});
  const auto diverged = share_of(joint, "narrow", folder_ / "joint");
  EXPECT_EQ(diverged.summary.at("ended").at("reason"), "diverged");
  EXPECT_LT(diverged.losses.size(), 20);
  request_.objectives.erase(request_.objectives.begin() + 1);
  expect_as_alone(joint, "joint");
}

TEST_F(Objectives, KeepTheirBestWhenTheLastThatTrainsDiverges) {
  request_.objectives.resize(2);
  request_.evaluate_every_steps = 2;
  request_.patience = 2;
  request_.best_metric = "loss";
  request_.objectives[0].optimizer.learning_rate = 1e-3;
  request_.objectives[1].optimizer.learning_rate = 1e-12;
  request_.stop_at_step = 6;
  const auto before = run("run", {2, 1});
  ASSERT_EQ(share_of(before, "narrow", folder_ / "run").summary.at("ended").at("reason"), "no better evaluation");
  ASSERT_FALSE(share_of(before, "wide", folder_ / "run").summary.contains("ended"));
  request_.stop_at_step = 0;
  request_.objectives[0].optimizer.learning_rate = 1e30;
  request_.objectives[0].optimizer.clip_norm = 0;
  const auto outcome = run("run", {2, 1});
  EXPECT_LT(outcome.summary.at("steps").get<int>(), 20);
  const auto diverged = share_of(outcome, "wide", folder_ / "run");
  EXPECT_EQ(diverged.summary.at("ended").at("reason"), "diverged");
  EXPECT_LE(diverged.summary.at("best").at("step").get<int>(), 6);
  for (const std::string name : {"wide", "narrow"}) {
    const auto own = share_of(outcome, name, folder_ / "run");
    EXPECT_TRUE(std::isfinite(own.summary.at("test").at("loss").get<double>())) << name;
    for (const auto& [tensor_name, tensor] : own.trained) {
      EXPECT_LT(tensor.abs().max().item<double>(), 1e3) << "the best, not the last: " << name << ", " << tensor_name;
    }
  }
}

TEST_F(Objectives, StopTheRunWhenAllDiverge) {
  request_.objectives.resize(2);
  for (auto& objective : request_.objectives) {
    objective.optimizer.learning_rate = 1e30;
    objective.optimizer.clip_norm = 0;
  }
  EXPECT_THROW(run("run", {1, 1}), NumericError);
}

TEST_F(Objectives, LosePatienceEachForItself) {
  request_.evaluate_every_steps = 2;
  request_.patience = 2;
  request_.best_metric = "loss";
  request_.objectives[1].optimizer.learning_rate = 1e-12;
  const auto joint = run("joint", {1, 1});
  std::set<std::size_t> lengths;
  for (const auto& objective : request_.objectives) {
    const auto own = share_of(joint, objective.name, folder_ / "joint");
    const auto alone = run_alone(objective.name);
    const auto steps = own.summary.contains("ended") ? own.summary.at("ended").at("step").get<std::size_t>() : 20;
    EXPECT_EQ(alone.losses.size(), steps) << objective.name;
    for (const auto& [name, tensor] : alone.trained) EXPECT_TRUE(at::equal(tensor, own.trained.at(name))) << name;
    lengths.insert(steps);
  }
  EXPECT_GT(lengths.size(), 1);
}

TEST_F(Objectives, ShareTheFisherInformationAndKeepTheirBits) {
  request_.objectives.clear();
  for (const std::string name : {"one", "two"}) {
    add(name,
        {.method = "lst", .lst = {.reduction = name == "one" ? 2 : 4, .side_initial = "fisher", .fisher_rows = 8}},
        1e-2);
  }
  request_.steps = 3;
  testing::internal::CaptureStderr();
  const auto joint = run("joint", {2, 1});
  const auto said = testing::internal::GetCapturedStderr();
  const std::string measuring = "measuring how much each weight of the backbone matters";
  int num_measured = 0;
  for (auto found = said.find(measuring); found != std::string::npos; found = said.find(measuring, found + 1)) {
    ++num_measured;
  }
  EXPECT_EQ(num_measured, 2) << "once for both, said by each of two ranks:\n" << said;
  expect_as_alone(joint, "joint");
}

TEST_F(Objectives, RefuseWhatCannotShareTheFrozenForward) {
  request_.objectives[0].peft.lst.backbone_dropout = false;
  EXPECT_THROW(run("dropout", {1, 1}), ConfigError);
  request_.objectives[0].peft = {.method = "lora"};
  EXPECT_THROW(run("through", {1, 1}), ConfigError);
}

// How often each frozen weight is read by a linear layer.
std::map<const void*, int>* counted_weights = nullptr;

std::unique_ptr<at::ObserverContext> count_linear(const at::RecordFunction& function) {
  const auto inputs = function.inputs();
  if (counted_weights != nullptr && inputs.size() > 1 && inputs[1].isTensor()) {
    const auto found = counted_weights->find(inputs[1].toTensor().const_data_ptr());
    if (found != counted_weights->end()) ++found->second;
  }
  return nullptr;
}

TEST_F(Objectives, RunTheBackboneOnceForEachMicroBatch) {
  at::set_num_threads(1);
  dist::SoloCommunicator world;
  const auto dataset = data::Dataset::open(request_.dataset);
  for (auto& objective : request_.objectives) objective.head.num_labels = 2;
  train::ModelConfig model;
  model.path = request_.model;
  const train::ParallelConfig parallel;
  train::Worker worker({model, parallel, /*seed=*/7, request_.objectives}, train::Ranks{world});

  std::map<const void*, int> counts;
  for (const auto& layer : worker.slice().layers()) {
    if (layer->block() == nullptr) continue;
    layer->visit_linears(
        [&](const std::string& /*role*/, model::Linear& linear) { counts.emplace(linear.weight.const_data_ptr(), 0); });
  }
  ASSERT_EQ(counts.size(), 4 * 6);  // of 4 blocks
  counted_weights = &counts;
  const auto handle = at::addGlobalCallback(
      at::RecordFunctionCallback(&count_linear).needsInputs(true).scopes({at::RecordScope::FUNCTION}));
  std::vector<train::MicroBatch> micro_batches;
  for (const int index : {0, 1, 2}) {
    micro_batches.push_back(train::make_micro_batch(
        worker.backbone(), index, dataset.split("train").collate({index}, /*max_length=*/32, 8, /*fixed_length=*/0)));
  }
  const auto loss = [](std::size_t /*objective*/, const at::Tensor& logits, const model::NamedTensors& inputs) {
    return model::classification_loss(logits, inputs.at("labels"), /*num_global_rows=*/3);
  };
  worker.executor().train_step(dist::ScheduleKind::k1F1B, micro_batches, RandomKey{}, loss,
                               [](int, int, const at::Tensor&) {});
  at::removeCallback(handle);
  counted_weights = nullptr;
  for (const auto& [weight, count] : counts) EXPECT_EQ(count, 3);
}

}  // namespace
}  // namespace espalier::test
