// SPDX-License-Identifier: Apache-2.0
// Tiny random models as Hugging Face folders, for tests of everything that needs a backbone. The weights are drawn by
// name: the same description always gives the same bytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace espalier::test {

struct TinyModel {
  std::string family = "bert";  ///< bert | roberta | t5 | clip_t5 | bart | opt | gpt2 | llama | vit; language models
                                ///< from t5 to llama, tied; clip_t5 reads features of width 6
  std::int64_t num_blocks = 4;  ///< of the encoder, where there is one
  std::int64_t num_decoder_blocks = 2;  ///< of t5, clip_t5 and bart
  std::int64_t width = 24;
  std::int64_t heads = 3;
  std::int64_t ff = 40;
  std::int64_t vocab = 50;
  std::int64_t max_positions = 32;  ///< max_position_embeddings; RoBERTa can use two fewer
  double dropout = 0.1;             ///< hidden, attention and, where the family has it, activation
  std::int64_t num_labels = 2;
  bool has_head = false;  ///< stores dense layer and classifier; otherwise BERT has its pooler, RoBERTa nothing
  std::string activation = "gelu";
};

/// Writes config.json and model.safetensors into `folder`, which is made, and returns it.
std::filesystem::path write_tiny_model(const TinyModel& model, const std::filesystem::path& folder);

}  // namespace espalier::test
