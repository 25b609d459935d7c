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
    auto& peft = config.objectives.emplace_back().peft;
    peft.method = by_copy ? "lst" : "probe";
    peft.lst.reduction = 1;
    peft.lst.gate = "one";
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

/// Moves every trained tensor off its start, so that the method is seen in what is generated.
void stir(peft::Method& method) {
  for (const auto& tensor : method.trained()) {
    const at::Tensor value = tensor.value.detach();
    value.add_((at::arange(value.numel()) + 1).view(value.sizes()).sin(), 0.1);
  }
}

/// The likeliest continuation of each row alone that does not end, with the whole of it run again for every token.
std::vector<TokenIds> continue_without_cache(Worker& worker, const model::NamedTensors& prompts, int num_new) {
  const bool has_encoder = worker.backbone().is_encoder_decoder();
  const auto& ids = prompts.at("input_ids");
  std::vector<TokenIds> texts;
  for (std::int64_t row = 0; row < ids.size(0); ++row) {
    const auto source = ids[row].masked_select(prompts.at("attention_mask")[row].ne(0)).unsqueeze(0);
    auto tokens = has_encoder ? at::full({1, 1}, worker.backbone().decoder_start_token_id, at::kLong) : source;
    TokenIds text;
    for (int i = 0; i < num_new; ++i) {
      model::NamedTensors inputs = {{"input_ids", has_encoder ? source : tokens}};
      if (has_encoder) inputs["decoder_input_ids"] = tokens;
      const auto result =
          worker.method().forward({}, worker.slice().prepare(inputs), /*context=*/{}, /*keeps_pass=*/false);
      auto logits = result.outgoing.at("logits").select(1, -1).clone();  // [1, V]
      for (const auto end : worker.backbone().eos_token_ids) logits.select(1, end).fill_(-1e9);
      auto next = logits.argmax(-1, /*keepdim=*/true);
      if (has_encoder && i == 0 && worker.backbone().forced_first_token_id >= 0) {
        next.fill_(worker.backbone().forced_first_token_id);
      }
      text.push_back(next.item<std::int64_t>());
      tokens = at::cat({tokens, next}, 1);
    }
    texts.push_back(text);
  }
  return texts;
}

class GenerationByMethod : public testing::TestWithParam<std::tuple<const char*, const char*>> {};

TEST_P(GenerationByMethod, GoesOnFromItsCachesAsIfAllWereReadAgain) {
  const auto& [folder_name, method] = GetParam();
  const auto folder = std::filesystem::path(ESPALIER_SOURCE_DIR) / "tests/golden" / folder_name;
  const auto golden = model::open_safetensors(folder / "golden.safetensors");
  const auto ids = golden->get("input_ids");
  const model::NamedTensors prompts = {
      {"input_ids", ids},
      {"attention_mask", golden->contains("attention_mask") ? golden->get("attention_mask") : at::ones_like(ids)}};
  SearchConfig greedy;
  greedy.max_new_tokens = greedy.min_new_tokens = 6;  // no row ends before the others
  std::vector<TokenIds> expected;
  for (const int num_stages : {1, 2}) {
    dist::run_ranks(num_stages, [&, method = std::string(method)](dist::Communicator& communicator) {
      WorkerConfig config;
      config.model.path = folder.string();
      config.parallel.stages = num_stages;
      auto& peft = config.objectives.emplace_back().peft;
      peft.method = method;
      peft.lst.reduction = 2;
      peft.last.rank = peft.lora.rank = peft.adapter.rank = peft.meft.rank = 4;
      peft.prompt.tokens = 4;
      Worker worker(config, {communicator, nullptr, communicator.rank()});
      stir(worker.method());
      const auto texts = generate(worker, greedy, prompts);
      if (num_stages == 1) expected = continue_without_cache(worker, prompts, 6);
      EXPECT_EQ(texts, expected) << "on " << num_stages << " stages";
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Causal, GenerationByMethod,
                         testing::Combine(testing::Values("gpt2_1", "opt_1", "llama_1"),
                                          testing::Values("lora", "adapter", "lst", "last", "meft", "prompt")));
INSTANTIATE_TEST_SUITE_P(EncoderDecoder, GenerationByMethod,
                         testing::Combine(testing::Values("t5_1", "bart_1"),
                                          testing::Values("lora", "adapter", "lst", "meft", "prompt")));

TEST(GenerationFolders, AreThereForEveryGeneratingFamily) {
  std::map<std::string, int> count;
  for (const auto& folder : generating_folders()) ++count[model::read_backbone(folder, {}).family->model_type()];
  EXPECT_EQ(count.size(), 5U);  // t5, bart, opt, gpt2, llama
}

}  // namespace
}  // namespace espalier::train
