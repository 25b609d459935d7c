// SPDX-License-Identifier: Apache-2.0
// A folder that stores the copy of a tied head beside its table, as one converted from a file with every copy does.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "peft/trained_set.h"
#include "stages.h"

namespace espalier::peft {
namespace {

constexpr const char* kHead = "lm_head.weight";

class WithHeadCopy final : public model::WeightSource {
 public:
  WithHeadCopy(std::unique_ptr<model::WeightSource> source, std::string table)
      : source_(std::move(source)), table_(std::move(table)) {}
  [[nodiscard]] bool contains(const std::string& name) const override {
    return name == kHead || source_->contains(name);
  }
  [[nodiscard]] std::vector<std::int64_t> shape(const std::string& name) const override {
    return source_->shape(stored(name));
  }
  [[nodiscard]] at::Tensor get(const std::string& name) const override { return source_->get(stored(name)); }
  [[nodiscard]] std::vector<std::string> names() const override {
    std::vector<std::string> names = source_->names();
    names.emplace_back(kHead);
    return names;
  }

 private:
  [[nodiscard]] const std::string& stored(const std::string& name) const { return name == kHead ? table_ : name; }

  std::unique_ptr<model::WeightSource> source_;
  std::string table_;
};

TEST(FullMethod, TrainsAndCountsAStoredCopyOfATiedHeadAsItsTable) {
  TinyModel tiny;
  tiny.backbone = plan_config({{"model_type", "gpt2"},
                               {"architectures", {"GPT2LMHeadModel"}},
                               {"tie_word_embeddings", true},
                               {"vocab_size", 40},
                               {"n_embd", 16},
                               {"n_layer", 2},
                               {"n_head", 2},
                               {"n_positions", 16}});
  std::vector<std::pair<std::string, std::vector<std::int64_t>>> shapes;
  model::visit_stored_tensors(tiny.backbone, [&](const auto& /*layer*/, const auto& stored, const auto& shape) {
    shapes.emplace_back(stored.names.front(), shape);
  });
  tiny.weights = std::make_unique<WithHeadCopy>(model::random_weights(shapes, 0.2, 7), shapes.front().first);
  EXPECT_EQ(find_copies(tiny.backbone, *tiny.weights), (Copies{{"head.output.weight", "embedding.token.weight"}}));
  for (const int num_stages : {1, 2}) {
    const Stages stages(tiny, {.method = "full"}, num_stages);
    std::int64_t count = 0;
    int num_copies = 0;
    for (const TrainedTensor& tensor : stages.trained()) {
      EXPECT_NE(tensor.name, "head.output.weight");
      count += tensor.is_copy ? 0 : tensor.value.numel();
      num_copies += tensor.is_copy ? 1 : 0;
    }
    EXPECT_EQ(num_copies, 1);
    EXPECT_EQ(count, count_trained({.method = "full"}, tiny.backbone).method);
  }
}

}  // namespace
}  // namespace espalier::peft
