// SPDX-License-Identifier: Apache-2.0
// What a run refuses, and what it leaves in its folder when it is stopped, killed, resumed or started once more.
#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <string_view>
#include <thread>

#include "common/durable_file.h"
#include "common/error.h"
#include "dist/agree.h"
#include "tiny_dataset.h"
#include "tiny_model.h"
#include "train/device.h"
#include "train/progress.h"
#include "train/run_folder.h"
#include "training_run.h"

namespace espalier::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class RunGuards : public testing::Test, protected TrainingRuns {
 protected:
  RunGuards() {
    request_.model = write_tiny_model({}, folder_ / "model");
    request_.dataset = write_tiny_dataset({}, folder_ / "data.h5");
    request_.peft.method = "lora";
    request_.peft.lora.rank = 2;
    request_.steps = 3;
  }
  /// The text of the ConfigError that every rank throws alike.
  std::string refusal(const std::string& name, Layout layout) {
    try {
      run(name, layout);
    } catch (const ConfigError& error) {
      EXPECT_NE(dynamic_cast<const dist::Agreed*>(&error), nullptr) << "N ranks would log it: " << error.what();
      return error.what();
    }
    return "no ConfigError";
  }
  [[nodiscard]] std::int64_t sum_of_tokens(const std::string& name) const {
    std::int64_t sum = 0;
    std::ifstream lines(train::RunFolder(folder_ / name).metrics_file());
    for (std::string line; std::getline(lines, line);) {
      sum += nlohmann::json::parse(line).value("tokens", std::int64_t{0});
    }
    return sum;
  }
};

TEST_F(RunGuards, RefuseReplicasThatWouldDoNothing) {
  request_.adjust = [](train::TrainerConfig& config) { config.data.micro_batch_size = 0; };
  EXPECT_THAT(refusal("idle", {1, 2}), AllOf(HasSubstr("data.micro_batch_size"), HasSubstr("2 replicas"),
                                             HasSubstr("found 1 of 12 rows"), HasSubstr("to at most 6")));
  request_.adjust = [](train::TrainerConfig& config) { config.data.micro_batch_size = 6; };
  EXPECT_EQ(run("busy", {1, 2}).losses.size(), 3);
}

TEST_F(RunGuards, SayOnceThatStagesWait) {
  for (const std::int64_t rows : {12, 6}) {
    request_.adjust = [rows](train::TrainerConfig& config) { config.data.micro_batch_size = rows; };
    testing::internal::CaptureStderr();
    run(fmt::format("{}_rows", rows), {2, 1});
    const auto said = testing::internal::GetCapturedStderr();
    EXPECT_EQ(said.find("data.micro_batch_size of at most 6") != std::string::npos, rows == 12) << said;
    EXPECT_EQ(said.find("wait for one another"), said.rfind("wait for one another")) << "once, of all ranks";
  }
}

TEST_F(RunGuards, RefuseOptionsOfAValidationThatTheDatasetDoesNotHave) {
  request_.dataset = write_tiny_dataset({.has_validation = false}, folder_ / "bare.h5");
  EXPECT_EQ(run("without", {2, 1}).losses.size(), 3);
  request_.patience = 2;
  EXPECT_THAT(refusal("patience", {2, 1}), AllOf(HasSubstr("train.patience"), HasSubstr("bare.h5")));
  request_.patience = 0;
  request_.evaluate_every_steps = 2;
  EXPECT_THAT(refusal("every", {1, 1}), HasSubstr("train.evaluate_every_steps"));
  request_.evaluate_every_steps = 0;
  request_.best_metric = "f1";
  EXPECT_THAT(refusal("metric", {1, 1}), HasSubstr("train.best_metric"));
}

std::atomic<bool> signal_came{false};

std::unique_ptr<at::ObserverContext> signal_at_first_loss(const at::RecordFunction& function) {
  if (std::string_view(function.name()) == "aten::cross_entropy_loss") signal_came = true;
  return nullptr;
}

TEST_F(RunGuards, StopAfterTheStepThatASignalComesIn) {
  request_.stop = &signal_came;
  const auto handle =
      at::addGlobalCallback(at::RecordFunctionCallback(&signal_at_first_loss).scopes({at::RecordScope::FUNCTION}));
  const auto outcome = run("stopped", {2, 2});
  at::removeCallback(handle);
  ASSERT_TRUE(signal_came.load());
  EXPECT_EQ(outcome.losses.size(), 1) << "and not the step after it";
  EXPECT_TRUE(outcome.summary.at("is_stopped").get<bool>());
}

TEST_F(RunGuards, DropTheRecordsOfARunThatWasKilledBeforeItsFirstSave) {
  const train::RunFolder killed(folder_ / "killed");
  killed.create();
  std::ofstream(killed.metrics_file()) << "{\"kind\":\"train\",\"step\":1,\"loss\":9.0}\n{\"kind\":\"train\",\"st";
  const auto expected = run("fresh", {1, 1});
  EXPECT_EQ(run("killed", {1, 1}).losses, expected.losses);
}

TEST_F(RunGuards, LeaveTheSummaryOfAFinishedRunAsItIs) {
  const auto first = run("run", {2, 1});
  const auto file = train::RunFolder(folder_ / "run").summary_file();
  const auto text = read_file(file);
  const auto again = run("run", {1, 1});
  EXPECT_EQ(read_file(file), text);
  EXPECT_EQ(again.summary, first.summary);
  EXPECT_EQ(again.summary.at("steps_this_run"), 3);
  for (const auto& [name, tensor] : first.trained) EXPECT_TRUE(at::equal(again.trained.at(name), tensor)) << name;
  std::filesystem::remove(file);  // of a run that was killed at its end
  EXPECT_EQ(run("run", {1, 1}).summary.at("steps_this_run"), 0);
}

TEST_F(RunGuards, ReportTheBytesOfGradients) {
  const auto summary = run("run", {2, 1}).summary;
  EXPECT_EQ(summary.at("gradient_bytes"), summary.at("trained_bytes"));
}

TEST_F(RunGuards, CountTheTokensThatAreAttendedTo) {
  request_.steps = 5;  // an epoch
  const auto count_rows = [&] {
    const auto dataset = data::Dataset::open(request_.dataset);
    std::int64_t tokens = 0;
    for (std::int64_t row = 0; row < 60; ++row) tokens += dataset.split("train").length(row);
    return tokens;
  };
  for (const Layout layout : {Layout{1, 1}, {2, 2}}) {
    const auto name = fmt::format("bert_{}", layout.replicas);
    run(name, layout);
    EXPECT_EQ(sum_of_tokens(name), count_rows()) << name;
  }
  request_.model =
      write_tiny_model({.family = "t5", .num_blocks = 2, .width = 16, .heads = 2, .ff = 24}, folder_ / "t5");
  request_.dataset = write_tiny_dataset({.task = "seq2seq", .longest = 12}, folder_ / "texts.h5");
  for (const Layout layout : {Layout{1, 1}, {2, 2}}) {
    const auto name = fmt::format("t5_{}", layout.replicas);
    run(name, layout);
    EXPECT_EQ(sum_of_tokens(name), count_rows()) << name << ": inputs and targets";
  }
}

class ResumedOptions : public RunGuards {
 protected:
  ResumedOptions() { request_.stop_at_step = 1; }
  /// Starts a run with the options `stored`, then goes on with `now`.
  std::string resume(const std::string& name, const std::string& stored, const std::string& now,
                     const std::string& defaults) {
    request_.adjust = [&](train::TrainerConfig& config) { config.numeric_options = stored; };
    run(name, {1, 1});
    request_.stop_at_step = 2;
    request_.adjust = [&](train::TrainerConfig& config) {
      config.numeric_options = now;
      config.default_options = defaults;
    };
    auto text = refusal(name, {1, 1});
    request_.stop_at_step = 1;
    return text;
  }
};

TEST_F(ResumedOptions, MayBeOfALaterVersionThatHasMoreWhileTheyStayAtTheirDefaults) {
  const std::string stored = "[optimizer]\nbeta1 = 0.9\n[train]\nseed = 7\n";
  const std::string later = "[optimizer]\nbeta1 = 0.9\nnew = 0.5\n[train]\nseed = 7\n[young]\nlist = \n";
  const std::string defaults = "[optimizer]\nbeta1 = 0.8\nnew = 0.5\n[train]\nseed = 0\n[young]\nlist = \n";
  EXPECT_EQ(resume("default", stored, later, defaults), "no ConfigError");
  const std::string other = "[optimizer]\nbeta1 = 0.9\nnew = 0.25\n[train]\nseed = 7\n[young]\nlist = \n";
  EXPECT_THAT(resume("other", stored, other, defaults),
              AllOf(HasSubstr("\n  optimizer.new: absent in the checkpoint, 0.25 now"), Not(HasSubstr("young"))));
  EXPECT_THAT(resume("unknown", stored, later, ""), HasSubstr("\n  young.list: absent in the checkpoint, empty now"));
}

TEST_F(ResumedOptions, AreComparedBySectionAndNamedWhole) {
  EXPECT_THAT(resume("exchanged", "[a]\nseed = 1\n[b.c]\nseed = 2\n", "[a]\nseed = 2\n[b.c]\nseed = 1\n", ""),
              AllOf(HasSubstr("\n  a.seed: 1 in the checkpoint, 2 now"),
                    HasSubstr("\n  b.c.seed: 2 in the checkpoint, 1 now")));
  EXPECT_THAT(resume("gone", "[a]\nold = 1\nseed = 2\n", "[a]\nseed = 2\n", "[a]\nseed = 2\n"),
              HasSubstr("\n  a.old: 1 in the checkpoint, absent now"));
}

TEST(RunLock, IsHeldByOneAtATimeAndNamesIt) {
  const TemporaryFolder folder;
  const auto file = train::RunFolder(folder.path()).lock_file();
  {
    const train::RunLock lock(file);
    EXPECT_THAT(message_of<ConfigError>([&] { const train::RunLock second(file); }),
                AllOf(HasSubstr("run.folder"), HasSubstr(file.string()),
                      HasSubstr(fmt::format("process {}", ::getpid())), HasSubstr("another folder")));
  }
  EXPECT_NO_THROW(train::RunLock{file});
}

TEST_F(RunGuards, TrainInAFolderOneAtATime) {
  const train::RunFolder taken(folder_ / "run");
  taken.create();
  {
    const train::RunLock other(taken.lock_file());
    EXPECT_THAT(refusal("run", {2, 1}), HasSubstr("no other process trains in"));
    EXPECT_FALSE(std::filesystem::exists(taken.config_file())) << "left as it was";
  }
  EXPECT_EQ(run("run", {2, 1}).losses.size(), 3);
}

TEST(TrainOptions, RefuseCountsThatAnIntWouldCutOff) {
  train::ParallelConfig parallel;
  train::CheckpointConfig checkpoint;
  OptionTable table;
  describe(table, parallel);
  describe(table, checkpoint);
  for (const std::string key : {"parallel.stages", "parallel.replicas", "parallel.threads", "checkpoint.keep"}) {
    EXPECT_THROW(table.read_flags({"--" + key + "=4294967297"}), ConfigError) << key;  // 1 once cut off
  }
}

TEST(Progress, CountsTimeFromTheFirstStep) {
  train::Progress progress(/*is_shown=*/false);
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  EXPECT_EQ(progress.seconds(), 0);
  progress.resume();
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  EXPECT_GT(progress.seconds(), 0);
}

TEST(DefaultThreads, WarnWhereTheLauncherMayHaveDividedTheCoresAlready) {
  testing::internal::CaptureStderr();
  EXPECT_EQ(train::default_threads({.allowed = 8, .online = 16}, /*ranks_on_node=*/2), 4);
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              AllOf(HasSubstr("8 of the node's 16"), HasSubstr("--bind-to none"), HasSubstr("parallel.threads")));
  testing::internal::CaptureStderr();
  EXPECT_EQ(train::default_threads({.allowed = 8, .online = 16}, /*ranks_on_node=*/1), 8);
  EXPECT_EQ(train::default_threads({.allowed = 16, .online = 16}, /*ranks_on_node=*/4), 4);
  EXPECT_EQ(train::default_threads({.allowed = 2, .online = 2}, /*ranks_on_node=*/4), 1);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace espalier::test
