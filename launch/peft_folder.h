// SPDX-License-Identifier: Apache-2.0
// LoRA in the folder format of Hugging Face PEFT: adapter_config.json and adapter_model.safetensors. docs/export.md.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "checkpoint/adapter.h"
#include "model/slice.h"
#include "peft/method_config.h"

namespace espalier::launch {

inline constexpr const char* kPeftTensorsName = "adapter_model.safetensors";
/// What PEFT puts before the names of the model's modules.
inline constexpr const char* kPeftPrefix = "base_model.model.";

/// Whether `folder` has PEFT's description (and not ours).
bool is_peft_folder(const std::filesystem::path& folder);

/// Throws: ConfigError where the tensors are absent or no safetensors.
std::unique_ptr<model::WeightSource> open_peft_tensors(const std::filesystem::path& folder);

/// `name` without its end, which is `end`.
std::string without_end(const std::string& name, std::string_view end);

/// Writes the trained `tensors` of a LoRA, by canonical name, so that `peft` loads them onto the `transformers` model.
/// Throws: ConfigError for what the format cannot say and for a folder that is there; IoError.
void write_peft_folder(const std::filesystem::path& folder, const peft::MethodConfig& config,
                       const model::Backbone& backbone, const std::string& pooling, const model::WeightSource& weights,
                       const std::map<std::string, at::Tensor>& tensors);

/// Reads such a folder onto the model in `model_folder`, as the adapter that Espalier itself would have written, but
/// for the digest of the backbone, which PEFT does not record. A linear of lower rank than others is filled up with
/// zeros, which never train, so none may be narrower than the largest rank; factors of several roles in one stored
/// tensor become those of each role.
/// Throws: ConfigError naming the key or tensor that is not supported.
checkpoint::Adapter read_peft_folder(const std::filesystem::path& folder, const std::filesystem::path& model_folder);

}  // namespace espalier::launch
