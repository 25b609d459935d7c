// SPDX-License-Identifier: Apache-2.0
// A Hugging Face model folder with the training merged into its weights. docs/export.md.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "data/dataset.h"
#include "model/slice.h"

namespace espalier::launch {

struct MergedOptions {
  std::int64_t shard_bytes = 5'000'000'000;  ///< of tensors in one file
  std::string type = "stored";               ///< stored | fp32 | bf16 | fp16
};

/// Writes the backbone's folder anew with `merged` weights (by canonical name) in place of its own: tensors that
/// training left alone keep their bytes, changed ones their stored type (those of a task head are fp32). config.json
/// names the class with the head; files of tokenizer, chat template and processor are copied.
/// Throws: ConfigError for what `transformers` has no class for and for a folder that is there; IoError.
void write_merged_folder(const std::filesystem::path& folder, const model::Backbone& backbone,
                         const std::string& pooling, const model::WeightSource& weights,
                         const std::map<std::string, at::Tensor>& merged, const data::DatasetInfo& dataset,
                         const MergedOptions& options);

}  // namespace espalier::launch
