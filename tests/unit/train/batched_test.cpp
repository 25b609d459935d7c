// SPDX-License-Identifier: Apache-2.0
// Objectives of one shape as grouped matrix products: fewer products, the numbers of each up to rounding, and still the
// same bits on any layout.
#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <gtest/gtest.h>

#include <atomic>

#include "tiny_dataset.h"
#include "tiny_model.h"
#include "training_run.h"

namespace espalier::test {
namespace {

std::atomic<std::int64_t> num_products = 0;

std::unique_ptr<at::ObserverContext> count_product(const at::RecordFunction& function) {
  if (std::string_view(function.name()) == "aten::linear") ++num_products;
  return nullptr;
}

class Batched : public testing::TestWithParam<const char*>, protected TrainingRuns {
 protected:
  Batched() {
    const std::string family = GetParam();
    request_.model = write_tiny_model(
        {.family = family, .num_blocks = 3, .num_decoder_blocks = 2, .width = 16, .heads = 2, .ff = 24},
        folder_ / "model");
    const char* task = family == "vit"     ? "image_classification"
                       : family == "t5"    ? "seq2seq"
                       : family == "llama" ? "causal_lm"
                                           : "classification";
    request_.dataset = write_tiny_dataset({.task = task, .longest = 12}, folder_ / "data.h5");
    request_.steps = 5;
    request_.epsilon = 1e-3;  // small differences of small gradients stay small
    const peft::LstConfig ladder{
        .reduction = 2, .layers = family == "t5" ? std::vector<std::int64_t>{} : std::vector<std::int64_t>{0, 2}};
    add("ladder_a", {.method = "lst", .seed = 3, .lst = ladder}, 1e-2);
    add("ladder_b", {.method = "lst", .seed = 4, .lst = ladder}, 3e-3);
    add("wider", {.method = "lst", .lst = {.reduction = 1}}, 1e-2);
    add("ladder_c", {.method = "lst", .seed = 5, .lst = ladder}, 1e-2);
    if (family != "t5") {
      add("rank_a", {.method = "last", .seed = 6, .last = {.rank = 4, .modules_per_group = 2, .heads = 2}}, 1e-2);
      add("rank_b", {.method = "last", .seed = 7, .last = {.rank = 4, .modules_per_group = 2, .heads = 2}}, 1e-2);
    }
  }

  void add(const std::string& name, const peft::MethodConfig& peft, double learning_rate) {
    auto optimizer = request_.optimizer();
    optimizer.learning_rate = learning_rate;
    request_.objectives.push_back({.name = name, .peft = peft, .optimizer = optimizer});
  }

  /// The run, and how many linear maps it took.
  std::pair<RunOutcome, std::int64_t> count(const std::string& name, Layout layout, bool batched) {
    request_.batched = batched;
    num_products = 0;
    const auto handle =
        at::addGlobalCallback(at::RecordFunctionCallback(&count_product).scopes({at::RecordScope::FUNCTION}));
    auto outcome = run(name, layout);
    at::removeCallback(handle);
    return {std::move(outcome), num_products};
  }
};

TEST_P(Batched, GivesEachObjectiveItsNumbersInFewerProducts) {
  const auto [expected, num_single] = count("single", {1, 1}, /*batched=*/false);
  const auto [found, num_grouped] = count("batched", {1, 1}, /*batched=*/true);
  EXPECT_LT(num_grouped, num_single * 9 / 10);
  for (const auto& objective : request_.objectives) {
    const auto own = share_of(found, objective.name, folder_ / "batched");
    const auto alone = share_of(expected, objective.name, folder_ / "single");
    ASSERT_EQ(own.losses.size(), 5);
    for (std::size_t step = 0; step < 5; ++step) {
      EXPECT_NEAR(own.losses[step], alone.losses[step], 1e-5 * alone.losses[step]) << objective.name << ", " << step;
    }
    ASSERT_FALSE(alone.trained.empty());
    for (const auto& [name, tensor] : alone.trained) {
      EXPECT_TRUE(at::allclose(own.trained.at(name), tensor, /*rtol=*/1e-3, /*atol=*/1e-5))
          << objective.name << ", " << name;
    }
  }
  for (const Layout layout : {Layout{3, 1}, Layout{2, 2}}) {
    const auto run_name = std::to_string(layout.stages) + "x" + std::to_string(layout.replicas);
    const auto laid_out = run(run_name, layout);
    for (const auto& objective : request_.objectives) {
      expect_same_bits(share_of(laid_out, objective.name, folder_ / run_name),
                       share_of(found, objective.name, folder_ / "batched"), run_name + ", " + objective.name);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, Batched, testing::Values("bert", "t5", "llama", "vit"),
                         [](const auto& tested) { return std::string(tested.param); });

}  // namespace
}  // namespace espalier::test
