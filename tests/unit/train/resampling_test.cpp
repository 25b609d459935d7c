// SPDX-License-Identifier: Apache-2.0
// Events between steps: who does the work, what starts again, and what a checkpoint must hold of a weight that is
// split.
#include "train/resampling.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>
#include <mutex>

#include "checkpoint/store.h"
#include "common/error.h"
#include "dist/thread_communicator.h"
#include "tiny_dataset.h"
#include "tiny_model.h"
#include "training_run.h"

namespace espalier::test {
namespace {

class RosaRuns : public testing::Test, protected TrainingRuns {
 protected:
  RosaRuns() {
    request_.model = write_tiny_model({}, folder_ / "model");
    request_.dataset = write_tiny_dataset({}, folder_ / "data.h5");
    request_.peft.method = "rosa";
    request_.peft.rosa.rank = 4;
    request_.peft.rosa.every_steps = 6;
    request_.weight_decay = 0.1;
    request_.restore_best = false;
  }
};

TEST_F(RosaRuns, GoOnFromAnyStepAroundAnEventAsIfNothingHadBeen) {
  const auto expected = run("whole", {1, 1});
  for (const std::int64_t stop : {5, 6, 7, 13}) {
    const auto name = "stopped_" + std::to_string(stop);
    request_.stop_at_step = stop;
    run(name, {2, 1});
    request_.stop_at_step = 0;
    expect_same_bits(run(name, {1, 2}), expected, name);
  }
}

TEST_F(RosaRuns, MoveTheWeightFurtherThanOneSubspaceCan) {
  const auto change_rank = [&](const std::string& name) {
    const auto trained = run(name, {1, 1}).trained;
    const std::string linear = "encoder.1.attention.query";
    const auto before =
        model::open_model_folder(request_.model)->get("bert.encoder.layer.1.attention.self.query.weight");
    const auto after =
        trained.at(linear + ".weight") + trained.at(linear + ".rosa_b").mm(trained.at(linear + ".rosa_a"));
    const auto values = std::get<1>(at::linalg_svd((after - before).to(at::kDouble), false));
    return values.gt(values[0] * 1e-4).sum().item<std::int64_t>();
  };
  EXPECT_GT(change_rank("drawn anew"), 8);
  request_.peft.rosa.every_steps = 0;
  request_.peft.rosa.every_epochs = 0;
  EXPECT_LE(change_rank("drawn once"), 8);
}

TEST_F(RosaRuns, LeaveTheLearningRatesScheduleAlone) {
  const auto rates = [&](const std::string& name) {
    run(name, {1, 1});
    std::vector<double> found;
    std::ifstream lines(train::RunFolder(folder_ / name).metrics_file());
    for (std::string line; std::getline(lines, line);) {
      const auto record = nlohmann::json::parse(line);
      if (record.at("kind") == "train") found.push_back(record.at("learning_rate").get<double>());
    }
    return found;
  };
  const auto with_events = rates("events");
  request_.peft.method = "lora";
  EXPECT_EQ(with_events, rates("lora"));
}

TEST_F(RosaRuns, SayWhatEventsCostAndWhatTheyKeep) {
  const auto outcome = run("run", {1, 2});
  EXPECT_GT(outcome.summary.at("resampling_seconds").get<double>(), 0);
  EXPECT_GT(outcome.summary.at("resampling_share").get<double>(), 0);
  EXPECT_LT(outcome.summary.at("resampling_share").get<double>(), 1);
  const std::int64_t rest_bytes = 4 * 4 * 24 * 24 * 4;  // blocks, linears, width, width, fp32
  EXPECT_EQ(outcome.summary.at("kept_bytes").at(0).get<std::int64_t>(), rest_bytes);
  // A replica gives the parts of half of the weights, in each of four events.
  const std::int64_t factor_bytes = 4 * 4 * 2 * 4 * 24 * 4;
  EXPECT_EQ(outcome.traffic.at("broadcast/resampling"), 4 * (rest_bytes + factor_bytes) / 2);
  const auto loaded = checkpoint::open_checkpoint(train::RunFolder(folder_ / "run").checkpoints() / "step_00000020");
  EXPECT_EQ(loaded->entry("kept/encoder.3.attention.output.weight").shape, (std::vector<std::int64_t>{24, 24}));

  request_.peft.method = "lora";
  EXPECT_FALSE(run("lora", {1, 1}).summary.contains("resampling_seconds"));
}

/// One event before step 0 on threads as ranks; `perturbed` (-1: none): the replica whose weights are moved before.
/// Returns the parts of all replicas.
std::vector<std::map<std::string, at::Tensor>> run_event(const std::filesystem::path& folder, int replicas,
                                                         int perturbed) {
  std::vector<std::map<std::string, at::Tensor>> parts(static_cast<std::size_t>(replicas));
  std::mutex mutex;
  dist::run_ranks(2 * replicas, [&](dist::Communicator& world) {
    peft::MethodConfig peft{.method = "rosa", .rosa = {.rank = 4}};
    train::ParallelConfig parallel;
    parallel.stages = 2;
    parallel.replicas = replicas;
    train::ModelConfig model;
    model.path = folder;
    train::Worker worker({model, parallel, /*seed=*/7, {{.peft = peft, .head = {.num_labels = 2}}}},
                         train::Ranks{world});
    std::vector<optim::Parameter> parameters;
    for (const auto& tensor : worker.method().trained()) parameters.push_back({tensor.name, tensor.value});
    optim::AdamW optimizer({}, parameters);
    train::ResamplingEvents events(worker.method(), worker.mesh(), optimizer, /*steps_per_epoch=*/5);
    if (worker.place().replica_index == perturbed && worker.place().stage_index == 1) {
      worker.method().resampling()->parts(2).front().second.view(-1)[3].add_(1e-6);
    }
    EXPECT_TRUE(events.run_before(0));
    EXPECT_FALSE(events.run_before(3));
    const std::lock_guard lock(mutex);
    for (int j = 0; j < worker.method().resampling()->num_weights(); ++j) {
      for (const auto& [name, tensor] : worker.method().resampling()->parts(j)) {
        parts[static_cast<std::size_t>(worker.place().replica_index)].emplace(name, tensor.clone());
      }
    }
  });
  return parts;
}

TEST(ResamplingEvents, LeaveTheSameBitsOnEveryReplica) {
  const TemporaryFolder folder;
  const auto model = write_tiny_model({}, folder / "model");
  const auto expected = run_event(model, 1, -1).front();
  ASSERT_EQ(expected.size(), 3U * 4U * 4U);
  for (const int replicas : {2, 3}) {
    for (const auto& found : run_event(model, replicas, -1)) {
      for (const auto& [name, tensor] : expected) {
        EXPECT_TRUE(at::equal(found.at(name), tensor)) << name << ", " << replicas << " replicas";
      }
    }
  }
}

TEST(ResamplingEvents, FindAReplicaThatHoldsSomethingElse) {
  const TemporaryFolder folder;
  const auto model = write_tiny_model({}, folder / "model");
  try {
    run_event(model, 3, 2);
    ADD_FAILURE() << "a perturbed replica went on";
  } catch (const InternalError& error) {
    EXPECT_NE(std::string(error.what()).find("replica 2"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("stage 1"), std::string::npos) << error.what();
  }
}

TEST(ResamplingEvents, RestartTheFactorsInTheOptimizerAndNothingElse) {
  const TemporaryFolder folder;
  const auto path = write_tiny_model({}, folder / "model");
  dist::run_ranks(1, [&](dist::Communicator& world) {
    train::ModelConfig model;
    model.path = path;
    const peft::MethodConfig peft{.method = "rosa", .rosa = {.rank = 4, .every_steps = 3}};
    train::Worker worker({model, {}, /*seed=*/7, {{.peft = peft, .head = {.num_labels = 2}}}}, train::Ranks{world});
    std::vector<optim::Parameter> parameters;
    std::vector<at::Tensor> gradients;
    for (const auto& tensor : worker.method().trained()) {
      parameters.push_back({tensor.name, tensor.value});
      gradients.push_back(at::ones_like(tensor.value.detach()));
    }
    optim::AdamW optimizer({}, parameters);
    train::ResamplingEvents events(worker.method(), worker.mesh(), optimizer, /*steps_per_epoch=*/100);
    for (std::int64_t step = 0; step < 3; ++step) {
      events.run_before(step);
      optimizer.step(gradients, 1e-3);
    }
    events.run_before(3);
    EXPECT_EQ(optimizer.num_steps(), 3);
    for (const auto& [name, moment] : optimizer.state()) {
      const bool is_factor = name.find(".rosa_") != std::string::npos;
      EXPECT_EQ(moment.abs().max().item<double>() == 0, is_factor) << name;
    }
  });
}

}  // namespace
}  // namespace espalier::test
