// SPDX-License-Identifier: Apache-2.0
// The same model, data and random numbers on the CPU and on a CUDA device: dropout masks bit for bit; losses, gradients
// and what optimizer steps make of them to rounding.
#include "train/device.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "dist/solo_communicator.h"
#include "model/dropout.h"
#include "model/loss.h"
#include "temporary_folder.h"
#include "tiny_dataset.h"
#include "tiny_model.h"
#include "training_run.h"

namespace espalier::test {
namespace {

constexpr double kTolerance = 1e-4;

/// Largest difference, relative to the largest expected element or to `floor`, if that is larger.
double relative_error(const at::Tensor& found, const at::Tensor& expected, double floor) {
  const double scale = expected.abs().max().item<double>();
  return (found - expected).abs().max().item<double>() / std::max(scale, floor);
}

struct Gradients {
  double loss = 0;
  std::map<std::string, at::Tensor> by_name;  ///< one entry per micro-batch and trained tensor, on the host
};

class DeviceAgreement : public testing::TestWithParam<const char*> {
 protected:
  DeviceAgreement() {
    request_.model = write_tiny_model({}, folder_ / "model");
    request_.dataset = write_tiny_dataset({}, folder_ / "data.h5");
    request_.peft.method = GetParam();
    request_.peft.last.rank = request_.peft.adapter.rank = request_.peft.meft.rank = 4;
    request_.peft.rosa.rank = 4;
    request_.peft.prompt.tokens = 4;        // 32 positions hold them and 24 words
    request_.peft.rosa.svd_device = "cpu";  // singular vectors of near-equal values are anyone's
    request_.steps = 5;
    // Some gradients are zero but for rounding (a key's bias moves no softmax). Steps must not blow that up to full
    // size.
    request_.epsilon = 1e-3;
  }

  /// Forward and backward of two micro-batches, of which the rows have several lengths, with dropout.
  Gradients gradients_on(const std::string& device) {
    dist::SoloCommunicator world;
    const auto dataset = data::Dataset::open(request_.dataset);
    train::WorkerConfig config;
    config.model.path = request_.model;
    config.model.device = device;
    config.objectives = {{.peft = request_.peft, .head = {.num_labels = dataset.info().num_labels}}};
    config.seed = 7;
    train::Worker worker(config, train::Ranks{world});
    std::vector<train::MicroBatch> micro_batches;
    for (const int index : {0, 1}) {
      auto inputs = dataset.split("train").collate({4 * index, 4 * index + 1, 4 * index + 2, 4 * index + 3},
                                                   /*max_length=*/32, /*pad_multiple=*/8, /*fixed_length=*/0);
      const auto& ids = inputs.at("input_ids");
      const model::BatchShape shape{ids.size(0), ids.size(1)};
      micro_batches.push_back({index, std::move(inputs), shape});
    }
    const auto loss = [](std::size_t /*objective*/, const at::Tensor& logits, const model::NamedTensors& inputs) {
      return model::classification_loss(logits, inputs.at("labels").to(logits.device()), /*num_global_rows=*/8);
    };
    Gradients gradients;
    const auto losses = worker.executor().train_step(
        dist::ScheduleKind::k1F1B, micro_batches, RandomKey{/*seed=*/7, /*step=*/3, 0}, loss,
        [&](int micro_batch, int index, const at::Tensor& gradient) {
          ASSERT_TRUE(gradient.defined());
          const auto& name = worker.method().trained()[static_cast<std::size_t>(index)].name;
          gradients.by_name[name + " of micro-batch " + std::to_string(micro_batch)] = gradient.cpu();
        });
    gradients.loss = losses.at(0).front() + losses.at(1).front();
    return gradients;
  }

  RunOutcome train_on(const std::string& device) {
    auto request = request_;
    request.folder = folder_ / device;
    request.device = device;
    request.peft.lst.side_initial = "fisher";
    request.peft.lst.fisher_rows = 16;
    return run_training(request, {1, 1});
  }

  TemporaryFolder folder_;
  RunRequest request_;
};

TEST_P(DeviceAgreement, OfTheLossAndEveryGradientWithDropout) {
  const auto expected = gradients_on("cpu");
  const auto found = gradients_on("cuda");
  EXPECT_NEAR(found.loss / expected.loss, 1, kTolerance);
  ASSERT_EQ(found.by_name.size(), expected.by_name.size());
  double largest = 0;
  for (const auto& [name, gradient] : expected.by_name) {
    largest = std::max(largest, gradient.abs().max().item<double>());
  }
  EXPECT_GT(largest, 1e-3);
  for (const auto& [name, gradient] : expected.by_name) {
    EXPECT_LT(relative_error(found.by_name.at(name), gradient, 1e-2 * largest), kTolerance) << name;
  }
}

TEST_P(DeviceAgreement, OfLossesWeightsAndMetricsOverOptimizerSteps) {
  const auto expected = train_on("cpu");
  const auto found = train_on("cuda");
  ASSERT_EQ(expected.losses.size(), 5);
  ASSERT_EQ(found.losses.size(), 5);
  for (std::size_t step = 0; step < expected.losses.size(); ++step) {
    EXPECT_NEAR(found.losses[step] / expected.losses[step], 1, kTolerance) << "step " << step + 1;
  }
  ASSERT_EQ(found.trained.size(), expected.trained.size());
  for (const auto& [name, tensor] : expected.trained) {
    EXPECT_LT(relative_error(found.trained.at(name), tensor, 1e-3), kTolerance) << name;
  }
  const auto loss_of = [](const RunOutcome& outcome) { return outcome.summary.at("test").at("loss").get<double>(); };
  EXPECT_NEAR(loss_of(found) / loss_of(expected), 1, kTolerance);
  EXPECT_GT(found.summary.at("peak_allocated_bytes").at(0).get<std::int64_t>(), 0);
}

INSTANTIATE_TEST_SUITE_P(Methods, DeviceAgreement,
                         testing::Values("lst", "last", "lora", "rosa", "adapter", "bitfit", "prompt", "meft", "full"),
                         [](const auto& tested) { return std::string(tested.param); });

/// dropout and dropout_add of x, and the gradient of x.
std::vector<at::Tensor> drop(const at::Tensor& x, const at::Tensor& residual, std::int64_t first_element) {
  constexpr std::uint64_t kKey = 0x9E3779B97F4A7C15ULL;
  const auto leaf = x.detach().requires_grad_(true);
  const auto dropped = model::dropout(leaf, 0.1, kKey, first_element);
  const auto gradient = torch::autograd::grad({dropped}, {leaf}, {residual}).front();
  return {dropped.detach(), model::dropout_add(x, residual, 0.1, kKey), gradient};
}

TEST(DropoutOnADevice, HasTheBitsOfTheHost) {
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    for (const std::int64_t numel : {1, 255, 256, 257, 40001}) {
      for (const std::int64_t first_element : {0, 3, 256, 100000}) {
        const auto x = at::randn({numel}).to(type);
        const auto residual = at::randn({numel}).to(type);
        const auto expected = drop(x, residual, first_element);
        const auto found = drop(x.to(at::kCUDA), residual.to(at::kCUDA), first_element);
        for (std::size_t i = 0; i < expected.size(); ++i) {
          EXPECT_TRUE(at::equal(found[i].cpu(), expected[i]))
              << "result " << i << ", " << type << ", " << numel << " elements from " << first_element;
        }
      }
    }
  }
  const auto mask = model::dropout(at::ones({40001}, at::kCUDA), 0.1, /*key=*/5) != 0;
  EXPECT_TRUE(at::equal(mask.cpu(), model::dropout_mask(40001, 0.1, /*key=*/5) != 0));
}

}  // namespace
}  // namespace espalier::test
