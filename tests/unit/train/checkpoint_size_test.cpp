// SPDX-License-Identifier: Apache-2.0
// Promise 2 on disk: a checkpoint holds trained tensors and their moments to the byte, and no frozen weight.
#include <gtest/gtest.h>
#include <spdlog/fmt/fmt.h>

#include <numeric>

#include "checkpoint/store.h"
#include "common/durable_file.h"
#include "model/slice.h"
#include "temporary_folder.h"
#include "tiny_dataset.h"
#include "tiny_model.h"
#include "training_run.h"

namespace espalier::test {
namespace {

/// docs/checkpoint_format.md, "Size".
constexpr std::int64_t kHeaderBytesPerTensor = 1024;
constexpr std::int64_t kHeaderBytesPerCheckpoint = 8192;

std::int64_t tensor_bytes(const checkpoint::LoadedCheckpoint& loaded) {
  std::int64_t bytes = 0;
  for (const auto& name : loaded.names()) {
    const auto& entry = loaded.entry(name);
    EXPECT_EQ(entry.dtype, "float32") << name;
    bytes += 4 * std::accumulate(entry.shape.begin(), entry.shape.end(), std::int64_t{1}, std::multiplies<>());
  }
  return bytes;
}

class CheckpointSize : public testing::TestWithParam<std::string> {
 protected:
  CheckpointSize() {
    request_.model = write_tiny_model({}, folder_ / "model");
    request_.dataset = write_tiny_dataset({}, folder_ / "data.h5");
    request_.folder = folder_ / "run";
    request_.peft.method = GetParam();
    request_.peft.adapter.rank = request_.peft.prompt.tokens = 4;
    request_.pooling = request_.peft.method == "probe" ? "mean" : "auto";
  }
  [[nodiscard]] std::unique_ptr<checkpoint::LoadedCheckpoint> saved(std::int64_t step) const {
    return checkpoint::open_checkpoint(train::RunFolder(request_.folder).checkpoints() /
                                       fmt::format("step_{:08d}", step));
  }
  /// `per_scalar` for each that trains, and `copies` of what a method made of frozen weights: of ROSA the rests.
  static std::int64_t expected_bytes(const nlohmann::json& summary, std::int64_t per_scalar, std::int64_t copies) {
    const auto kept = summary.at("kept_bytes").get<std::vector<std::int64_t>>();  // by rank
    const auto kept_bytes = std::accumulate(kept.begin(), kept.end(), std::int64_t{0});
    EXPECT_EQ(kept_bytes > 0, summary.at("method") == "rosa");
    return per_scalar * summary.at("trained_parameters").get<std::int64_t>() + copies * kept_bytes;
  }

  TemporaryFolder folder_;
  RunRequest request_;
};

TEST_P(CheckpointSize, IsTwelveBytesForEachTrainedScalarAndBoundedHeaders) {
  request_.stop_at_step = 3;
  const auto summary = run_training(request_, {2, 1}).summary;
  const auto loaded = saved(3);
  const auto bytes = tensor_bytes(*loaded);
  EXPECT_EQ(bytes, expected_bytes(summary, 12, /*copies=*/1));
  const auto stored = summary.at("checkpoint_bytes").get<std::int64_t>();
  EXPECT_GT(stored, bytes);
  EXPECT_LT(stored - bytes,
            kHeaderBytesPerTensor * static_cast<std::int64_t>(loaded->names().size()) + kHeaderBytesPerCheckpoint);
}

TEST_P(CheckpointSize, GrowsByFourBytesForEachTrainedScalarOnceAnEvaluationWasTheBest) {
  request_.evaluate_every_steps = 2;
  request_.stop_at_step = 3;
  const auto summary = run_training(request_, {1, 1}).summary;
  EXPECT_EQ(tensor_bytes(*saved(3)), expected_bytes(summary, 16, /*copies=*/2));
}

TEST_P(CheckpointSize, HoldsNoFrozenWeight) {
  request_.stop_at_step = 3;
  const auto trained = run_training(request_, {1, 1}).trained;
  const auto folder = saved(3)->folder();
  const auto files = read_file(folder / "rank_0000.h5") + read_file(folder / "manifest.json");
  int num_frozen = 0;
  // Tensors are called "trained/<name>" and so on, with the slash written %2F in the HDF5 file.
  model::visit_planned_weights(
      model::read_backbone(request_.model, {2, request_.pooling}),
      [&](const model::LayerPlan& layer, const std::string& role, const std::vector<std::int64_t>&) {
        const auto name = layer.name + "." + role;
        const bool is_trained = trained.contains(name);
        num_frozen += is_trained ? 0 : 1;
        EXPECT_EQ(files.find("/" + name) != std::string::npos, is_trained) << name;
        EXPECT_EQ(files.find("%2F" + name) != std::string::npos, is_trained) << name;
      });
  EXPECT_EQ(num_frozen > 0, request_.peft.method != "full");
}

INSTANTIATE_TEST_SUITE_P(Methods, CheckpointSize, testing::ValuesIn(peft::method_names()),
                         [](const auto& tested) { return tested.param; });

}  // namespace
}  // namespace espalier::test
