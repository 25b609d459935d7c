// SPDX-License-Identifier: Apache-2.0
// Generates texts through the pipeline: every stage keeps the caches of its own blocks, the last one searches, and all
// learn from it which tokens come next.
#pragma once

#include <vector>

#include "model/carry.h"
#include "train/token_search.h"
#include "train/worker.h"

namespace espalier::train {

/// Texts for one batch of prompts: input_ids [N, T] and attention_mask [N, T] on the host, padded on either side, and
/// the visual inputs of a model that has them.
/// An encoder-decoder reads them as its input; a causal model goes on from them. Returns the generated tokens of each
/// row, without end token, on every rank of the replica. Equal rows give equal texts on every layout.
/// Collective: the stages of one replica, with the same prompts. Throws: ConfigError for a backbone without a language
/// model head, or rows too long for its positions; else as StageExecutor.
std::vector<TokenIds> generate(Worker& worker, const SearchConfig& config, const model::NamedTensors& prompts);

}  // namespace espalier::train
