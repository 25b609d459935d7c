// SPDX-License-Identifier: Apache-2.0
// What a stage has sent is let go of as soon as it has arrived, not at the end of the step.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "dist/thread_communicator.h"
#include "model/loss.h"
#include "tiny_dataset.h"
#include "tiny_model.h"
#include "training_run.h"

namespace espalier::test {
namespace {

/// Passes everything on, and sees how much of what was sent is alive at one time.
class WatchedSends final : public dist::Communicator {
 public:
  WatchedSends(std::unique_ptr<dist::Communicator> inner, std::size_t& most) : inner_(std::move(inner)), most_(most) {}

  int rank() const override { return inner_->rank(); }
  int num_ranks() const override { return inner_->num_ranks(); }
  int world_rank() const override { return inner_->world_rank(); }
  std::string backend() const override { return inner_->backend(); }
  dist::Work all_reduce(at::Tensor tensor) override { return inner_->all_reduce(std::move(tensor)); }
  dist::Work all_gather(std::vector<at::Tensor> outputs, at::Tensor input) override {
    return inner_->all_gather(std::move(outputs), std::move(input));
  }
  dist::Work broadcast(at::Tensor tensor, int root) override { return inner_->broadcast(std::move(tensor), root); }
  dist::Work send(at::Tensor tensor, int peer, dist::Channel channel) override {
    std::erase_if(sent_, [](const auto& storage) { return storage.expired(); });
    sent_.push_back(tensor.storage().getWeakStorageImpl());
    most_ = std::max(most_, sent_.size());
    return inner_->send(std::move(tensor), peer, channel);
  }
  dist::Work recv(at::Tensor tensor, int peer, dist::Channel channel) override {
    return inner_->recv(std::move(tensor), peer, channel);
  }
  void barrier() override { inner_->barrier(); }
  std::unique_ptr<dist::Communicator> split(int color, int key) override { return inner_->split(color, key); }
  void abort(int exit_code) noexcept override { inner_->abort(exit_code); }

 private:
  std::unique_ptr<dist::Communicator> inner_;
  std::size_t& most_;
  std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> sent_;
};

TEST(Sends, OfAStepDoNotAllStayAliveToItsEnd) {
  static constexpr int kMicroBatches = 12;
  const TemporaryFolder folder;
  const auto model_folder = write_tiny_model({}, folder / "model");
  const auto file = write_tiny_dataset({}, folder / "data.h5");
  at::set_num_threads(1);
  std::array<std::size_t, 2> most{};
  dist::run_ranks(2, [&](dist::Communicator& world) {
    const auto dataset = data::Dataset::open(file);
    train::ModelConfig model;
    model.path = model_folder;
    train::ParallelConfig parallel;
    parallel.stages = 2;
    std::vector<train::ObjectiveConfig> objectives(1);
    objectives.front().peft.method = "lora";
    objectives.front().head.num_labels = 2;
    train::Worker worker({model, parallel, /*seed=*/7, objectives}, train::Ranks{world});
    auto& pipeline = worker.mesh().pipeline;
    pipeline = std::make_unique<WatchedSends>(std::move(pipeline), most.at(static_cast<std::size_t>(world.rank())));
    std::vector<train::MicroBatch> micro_batches;
    for (int index = 0; index < kMicroBatches; ++index) {
      micro_batches.push_back(train::make_micro_batch(
          worker.backbone(), index, dataset.split("train").collate({index}, /*max_length=*/32, 8, /*fixed_length=*/0)));
    }
    const auto loss = [](std::size_t /*objective*/, const at::Tensor& logits, const model::NamedTensors& inputs) {
      return model::classification_loss(logits, inputs.at("labels"), kMicroBatches);
    };
    worker.executor().train_step(dist::ScheduleKind::k1F1B, micro_batches, RandomKey{}, loss,
                                 [](int, int, const at::Tensor&) {});
  });
  for (const auto alive : most) {
    EXPECT_GE(alive, 1u);
    EXPECT_LE(alive, 4u) << "two stages have two micro-batches under way";
  }
}

}  // namespace
}  // namespace espalier::test
