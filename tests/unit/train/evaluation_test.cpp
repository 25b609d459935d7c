// SPDX-License-Identifier: Apache-2.0
// Metrics of a split, against labels out of one batch of all its rows.
#include "train/evaluation.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <numeric>

#include "dist/solo_communicator.h"
#include "temporary_folder.h"
#include "tiny_dataset.h"
#include "tiny_model.h"
#include "train/task.h"

namespace espalier::test {
namespace {

/// An objective for every one of `columns`, "" for the labels themselves.
void expect_metrics_of_the_labels(const TinyModel& model, const TinyDataset& rows,
                                  const std::vector<std::string>& columns) {
  at::set_num_threads(1);
  const TemporaryFolder folder;
  const auto dataset = data::Dataset::open(write_tiny_dataset(rows, folder / "data.h5"));
  std::vector<data::DatasetInfo> infos;
  std::vector<train::ObjectiveConfig> objectives;
  for (const auto& column : columns) {
    infos.push_back(data::with_label_column(dataset.info(), column));
    objectives.push_back({.name = "of" + column,
                          .peft = {.method = "last", .last = {.rank = 2}},
                          .head = train::head_request(infos.back(), "auto"),
                          .data = infos.back()});
  }
  train::ModelConfig config;
  config.path = write_tiny_model(model, folder / "model");
  dist::SoloCommunicator world;
  train::Worker worker({config, train::ParallelConfig(), /*seed=*/7, objectives}, train::Ranks{world});

  const auto metrics = train::evaluate(worker, infos, dataset, "test", {}, /*batch_size=*/7);
  const auto& split = dataset.split("test");
  const auto results = train::predict(worker, infos, split, {}, /*batch_size=*/7);
  std::vector<std::int64_t> all(static_cast<std::size_t>(split.num_rows()));
  std::iota(all.begin(), all.end(), 0);
  const auto batch = split.collate(all, /*max_length=*/512, /*pad_multiple=*/8, /*fixed_length=*/0);
  ASSERT_EQ(metrics.size(), columns.size());
  for (std::size_t k = 0; k < infos.size(); ++k) {
    EXPECT_EQ(metrics[k], train::compute_metrics(infos[k].task, results[k], batch.at(infos[k].label_tensor)))
        << columns[k];
  }
}

TEST(Evaluation, ScoresEveryObjectiveByTheLabelsThatItLearns) {
  expect_metrics_of_the_labels({}, {.has_score = true}, {"", "score"});
}

TEST(Evaluation, ScoresImagesByTheirClasses) {
  expect_metrics_of_the_labels({.family = "vit"}, {.task = "image_classification"}, {""});
}

}  // namespace
}  // namespace espalier::test
