// SPDX-License-Identifier: Apache-2.0
#include "training_run.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <fstream>
#include <mutex>

#include "dist/thread_communicator.h"
#include "train/gather.h"
#include "train/task.h"

namespace espalier::test {
namespace {

/// Values of `key`, step by step.
std::vector<double> read_steps(const std::filesystem::path& file, const char* key) {
  std::vector<double> values;
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) {
    const auto record = nlohmann::json::parse(line);
    if (record.at("kind") == "train" && record.contains(key)) {
      values.push_back(record.at(key).get<double>());
    }
  }
  return values;
}

}  // namespace

optim::OptimizerConfig RunRequest::optimizer() const {
  optim::OptimizerConfig config;
  config.learning_rate = learning_rate;
  config.epsilon = epsilon;
  config.weight_decay = weight_decay;
  return config;
}

RunOutcome run_training(RunRequest request, Layout layout) {
  at::set_num_threads(1);
  RunOutcome outcome;
  std::mutex mutex;
  dist::run_ranks(layout.stages * layout.replicas, [&](dist::Communicator& world) {
    ByteLedger ledger;
    world.set_ledger(&ledger);
    train::ParallelConfig parallel;
    parallel.stages = layout.stages;
    parallel.replicas = layout.replicas;
    parallel.schedule = request.schedule;
    train::ModelConfig model;
    model.path = request.model;
    model.pooling = request.pooling;
    model.device = request.device;
    model.compute_type = request.compute_type;
    model.drop_path = request.drop_path;
    const auto dataset = data::Dataset::open(request.dataset);
    auto objectives = request.objectives;
    if (objectives.empty()) {
      objectives.push_back({.peft = request.peft, .optimizer = request.optimizer()});
    }
    for (auto& objective : objectives) {
      objective.data = data::with_label_column(dataset.info(), request.label_columns[objective.name]);
      objective.head = train::head_request(objective.data, request.pooling);
    }
    train::Worker worker({model, parallel, /*seed=*/7, objectives, request.batched}, train::Ranks{world});
    train::TrainerConfig config;
    config.data.global_batch_size = 12;
    config.data.micro_batch_size = 3;
    config.gradient_sync.strategy = request.strategy;
    config.gradient_sync.bucket_bytes = 4096;
    config.parallel = parallel;
    config.train.seed = 7;
    config.train.max_steps = request.steps;
    config.train.stop_at_step = request.stop_at_step;
    config.train.evaluate_every_steps = request.evaluate_every_steps;
    config.train.patience = request.patience;
    config.train.restore_best = request.restore_best;
    config.train.best_metric = request.best_metric;
    config.run_folder = request.folder;
    config.numeric_options = "test";
    if (request.adjust) request.adjust(config);
    const std::atomic<bool> never{false};
    train::Trainer trainer(config, worker, dataset, ledger, request.stop != nullptr ? *request.stop : never);
    auto summary = trainer.run();
    std::map<std::string, at::Tensor> gathered;
    for (std::size_t k = 0; k < worker.num_objectives(); ++k) {
      for (const auto& [name, tensor] : train::gather_stages(worker.mesh(), worker.result(k))) {
        gathered.emplace(peft::objective_prefix(worker.objective(k).part.name) + name, tensor);
      }
    }
    if (world.rank() == 0) {
      const std::lock_guard lock(mutex);
      outcome.trained = std::move(gathered);
      outcome.summary = std::move(summary.record);
      outcome.traffic = ledger.traffic();
    }
  });
  const auto metrics = train::RunFolder(request.folder).metrics_file();
  outcome.losses = read_steps(metrics, "loss");
  outcome.gradient_norms = read_steps(metrics, "gradient_norm");
  return outcome;
}

RunOutcome share_of(const RunOutcome& joint, const std::string& name, const std::filesystem::path& folder) {
  RunOutcome own;
  const auto prefix = peft::objective_prefix(name);
  for (const auto& [tensor_name, tensor] : joint.trained) {
    if (tensor_name.starts_with(prefix)) own.trained.emplace(tensor_name.substr(prefix.size()), tensor);
  }
  std::ifstream lines(train::RunFolder(folder).metrics_file());
  for (std::string line; std::getline(lines, line);) {
    const auto record = nlohmann::json::parse(line);
    if (record.at("kind") != "train") continue;
    const auto found = record.at("objectives").find(name);
    if (found != record.at("objectives").end() && found->at("loss").is_number()) {
      own.losses.push_back(found->at("loss").get<double>());
      const auto& norm = found->at("gradient_norm");  // null where it is not finite
      if (norm.is_number()) own.gradient_norms.push_back(norm.get<double>());
    }
  }
  for (const auto& objective : joint.summary.at("objectives")) {
    if (objective.at("name") == name) own.summary = objective;
  }
  return own;
}

RunOutcome TrainingRuns::run(const std::string& name, Layout layout) {
  auto request = request_;
  request.folder = folder_ / name;
  return run_training(request, layout);
}

void TrainingRuns::expect_trained(const RunOutcome& outcome) {
  auto request = request_;
  request.folder = folder_ / "still";
  request.learning_rate = 1e-30;
  // The first step's rate is 0, and nothing happens after it but events, which draw anew of what there is.
  const bool has_events = request.peft.method == "rosa" || request.peft.meft.factors == "rosa";
  request.stop_at_step = has_events ? 0 : 1;
  const auto still = run_training(request, {1, 1});
  ASSERT_FALSE(outcome.trained.empty());
  for (const auto& [name, tensor] : outcome.trained) {
    if (name.ends_with("key.bias")) continue;  // shifts all scores of a query alike: has no gradient but rounding
    EXPECT_FALSE(at::equal(tensor, still.trained.at(name))) << name << " was not trained";
  }
}

void TrainingRuns::expect_the_same_on_every_layout(bool tries_gpipe) {
  const auto expected = run("1x1", {1, 1});
  ASSERT_EQ(expected.losses.size(), 20);
  expect_trained(expected);
  for (const Layout layout : {Layout{2, 1}, {1, 2}, {2, 2}, {3, 1}}) {
    const std::string name = std::to_string(layout.stages) + "x" + std::to_string(layout.replicas);
    expect_same_bits(run(name, layout), expected, name);
  }
  if (tries_gpipe) {
    const auto usual = request_;
    request_.schedule = "gpipe";
    request_.strategy = "naive";
    expect_same_bits(run("gpipe", {2, 2}), expected, "gpipe, naive");
    request_ = usual;
  }
  request_.stop_at_step = 10;
  ASSERT_EQ(run("resumed", {2, 1}).losses.size(), 10);
  request_.stop_at_step = 0;
  expect_same_bits(run("resumed", {3, 1}), expected, "10 steps on 2x1, 10 on 3x1");
}

void expect_same_bits(const RunOutcome& found, const RunOutcome& expected, const std::string& what) {
  ASSERT_FALSE(expected.losses.empty());
  EXPECT_EQ(found.losses, expected.losses) << what;
  ASSERT_EQ(found.trained.size(), expected.trained.size()) << what;
  for (const auto& [name, tensor] : expected.trained) {
    ASSERT_TRUE(found.trained.contains(name)) << what << ": " << name;
    EXPECT_TRUE(at::equal(found.trained.at(name), tensor)) << what << ": " << name;
  }
}

}  // namespace espalier::test
