// SPDX-License-Identifier: Apache-2.0
// Small random datasets in the format of tools/prepare.py, for tests of everything that trains.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace espalier::test {

struct TinyDataset {
  std::string task = "classification";  ///< classification | regression | seq2seq | causal_lm | image_classification
  std::int64_t num_rows = 60;           ///< of the train split; validation and test have a third each
  std::int64_t vocab = 50;
  std::int64_t longest = 20;
  std::int64_t num_labels = 2;
  bool has_validation = true;
  bool has_score = false;  ///< of classification: a further label column "score", the number that regression has
  bool is_visual = false;  ///< of seq2seq: every row has two images, each of three features of width 6, and boxes
  std::uint64_t seed = 1;
};

/// Writes the file and returns its path. The label follows from the first token, so that training can learn it; the
/// target of seq2seq is the beginning of the input, the prompt of causal_lm its first token. Images are 8 x 8 pixels of
/// one channel, as grey as that token.
std::filesystem::path write_tiny_dataset(const TinyDataset& dataset, const std::filesystem::path& file);

}  // namespace espalier::test
