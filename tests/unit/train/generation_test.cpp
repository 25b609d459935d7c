// SPDX-License-Identifier: Apache-2.0
// Generated texts equal those of `transformers` token for token (tests/golden/), on one stage and on several.
#include "train/generation.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <mutex>

#include "dist/thread_communicator.h"
#include "model/input_names.h"
#include "model/weights.h"

namespace espalier::train {
namespace {

std::vector<std::filesystem::path> generating_folders() {
  std::vector<std::filesystem::path> folders;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(ESPALIER_SOURCE_DIR) / "tests/golden")) {
    if (model::open_safetensors(entry.path() / "golden.safetensors")->contains("generated.greedy")) {
      folders.push_back(entry.path());
    }
  }
  std::sort(folders.begin(), folders.end());
  return folders;
}

/// Rows without the -1 that fills them up.
std::vector<TokenIds> texts_of(const at::Tensor& stored) {
  std::vector<TokenIds> texts;
  for (std::int64_t row = 0; row < stored.size(0); ++row) {
    const auto kept = stored[row].masked_select(stored[row].ge(0)).contiguous();
    texts.emplace_back(kept.const_data_ptr<std::int64_t>(), kept.const_data_ptr<std::int64_t>() + kept.numel());
  }
  return texts;
}

/// A side network as wide as the backbone, with its blocks and projections that change nothing.
void make_copy_of_backbone(peft::Method& method) {
  for (const auto& tensor : method.trained()) {
    if (tensor.name.ends_with("first.weight") || tensor.name == "lst.up.weight") {
      tensor.value.detach().copy_(at::eye(tensor.value.size(0)));
    }
  }
}

/// The texts on every rank of a job of `num_stages` threads, of the bare backbone or of its copy beside it.
std::vector<std::vector<TokenIds>> generate_on_stages(const std::filesystem::path& folder, int num_stages,
                                                      const SearchConfig& search, const model::NamedTensors& prompts,
                                                      bool by_copy = false) {
  std::vector<std::vector<TokenIds>> texts(static_cast<std::size_t>(num_stages));
  dist::run_ranks(num_stages, [&](dist::Communicator& communicator) {
    WorkerConfig config;
    config.model.path = folder.string();
    config.parallel.stages = num_stages;
    config.peft.method = by_copy ? "lst" : "probe";
    config.peft.lst.reduction = 1;
    config.peft.lst.gate = "one";
    Worker worker(config, {communicator, nullptr, communicator.rank()});
    if (by_copy) make_copy_of_backbone(worker.method());
    texts[static_cast<std::size_t>(communicator.rank())] = generate(worker, search, prompts);
  });
  return texts;
}

class Generation : public testing::TestWithParam<std::filesystem::path> {};

TEST_P(Generation, EqualsTransformersTokenForTokenOnAnyNumberOfStages) {
  const auto golden = model::open_safetensors(GetParam() / "golden.safetensors");
  const auto ids = golden->get("input_ids");
  model::NamedTensors prompts = {
      {"input_ids", ids},
      {"attention_mask", golden->contains("attention_mask") ? golden->get("attention_mask") : at::ones_like(ids)}};
  for (const auto* name : model::kVisualInputs) {
    if (golden->contains(name)) prompts[name] = golden->get(name);
  }
  SearchConfig greedy;
  greedy.max_new_tokens = 8;
  SearchConfig beams = greedy;
  beams.num_beams = 4;
  beams.length_penalty = 0.7;
  SearchConfig rules = greedy;
  rules.num_beams = 3;
  rules.no_repeat_ngram = 2;
  rules.min_new_tokens = 4;
  rules.early_stopping = true;
  const std::map<std::string, SearchConfig> searches = {
      {"generated.greedy", greedy}, {"generated.beams", beams}, {"generated.rules", rules}};
  const auto backbone = model::read_backbone(GetParam(), {});
  const auto num_blocks = backbone.num_blocks();
  const bool has_copy = backbone.head().width == backbone.width;
  for (const auto& [name, search] : searches) {
    const auto expected = texts_of(golden->get(name));
    for (int num_stages = 1; num_stages <= std::min(3, num_blocks); ++num_stages) {
      for (const auto& texts : generate_on_stages(GetParam(), num_stages, search, prompts)) {
        EXPECT_EQ(texts, expected) << name << " on " << num_stages << " stages";
      }
    }
    // The side network has caches of its own, which a search moves with the backbone's.
    const int num_stages = std::min(2, num_blocks);
    for (const auto& texts : generate_on_stages(GetParam(), num_stages, search, prompts, has_copy)) {
      EXPECT_EQ(texts, expected) << name << " by LST";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, Generation, testing::ValuesIn(generating_folders()),
                         [](const auto& folder) { return folder.param.filename().string(); });

TEST(GenerationFolders, AreThereForEveryGeneratingFamily) {
  std::map<std::string, int> count;
  for (const auto& folder : generating_folders()) ++count[model::read_backbone(folder, {}).family->model_type()];
  EXPECT_EQ(count.size(), 5U);  // t5, bart, opt, gpt2, llama
}

}  // namespace
}  // namespace espalier::train
