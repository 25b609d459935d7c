// SPDX-License-Identifier: Apache-2.0
// A backbone is a chain of layers: embedding, blocks, (norms), head. A family reads config.json into this plan and says
// which stored tensor fills which role; everything else is shared by all families.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/block.h"
#include "model/weights.h"

namespace espalier::model {

enum class LayerKind { kEmbedding, kBlock, kHead };

/// Token, position and type embeddings, then norm and dropout.
struct EmbeddingSpec {
  std::int64_t vocab_size = 0, width = 0;
  std::int64_t num_positions = 0;
  std::int64_t num_token_types = 0;  ///< 0: none
  std::int64_t pad_token_id = 0;     ///< its row gets no gradient
  /// BERT: positions 0..T-1. RoBERTa: pad_token_id + running count of non-padding tokens, padding at pad_token_id.
  bool positions_follow_padding = false;
  bool has_norm = true;
  double norm_epsilon = 1e-12;
  double dropout = 0;
};

enum class Pooling { kFirstToken, kMean };

/// Pooled classification or regression head: pool, [dropout], [dense, tanh], dropout, classifier.
struct HeadSpec {
  Pooling pooling = Pooling::kFirstToken;
  std::int64_t width = 0;
  std::int64_t num_labels = 2;
  bool has_dense = true;
  bool drops_pooled = false;  ///< RoBERTa drops before the dense layer too
  double dropout = 0;
  double initializer_range = 0.02;
};

struct LayerPlan {
  LayerKind kind = LayerKind::kBlock;
  std::string name;         ///< canonical: "embedding", "encoder.0", "head"; never depends on the layout
  std::uint64_t index = 0;  ///< place in the whole chain
  std::optional<BlockSpec> block;
  std::optional<EmbeddingSpec> embedding;
  std::optional<HeadSpec> head;
};

/// Where a role's tensor is stored.
struct StoredWeight {
  std::vector<std::string>
      names;                   ///< alternatives, the first present one counts ("bert.embeddings..." or "embeddings...")
  bool is_transposed = false;  ///< stored [in, out] (GPT-2)
  std::int64_t slice_begin = 0, slice_end = 0;  ///< rows of the (transposed) tensor; 0, 0: all
  bool is_optional = false;                     ///< absent: the slot is initialised (heads)
};

class Backbone;

/// A model family: config.json -> plan, role -> stored tensor.
class Family {
 public:
  virtual ~Family() = default;
  [[nodiscard]] virtual std::string model_type() const = 0;
  [[nodiscard]] virtual StoredWeight stored_weight(const LayerPlan& layer, const std::string& role) const = 0;
  /// Stored tensors that are legal and unused here (position id buffers, the pre-training head).
  [[nodiscard]] virtual bool is_known_extra(const std::string& stored_name) const = 0;
};

/// What the user asks of the head; the rest comes from the folder.
struct HeadRequest {
  std::int64_t num_labels = 0;  ///< 0: as the folder says
  /// auto: the family's own. mean: mean of the attended tokens, no dense layer, no dropout (a linear probe).
  std::string pooling = "auto";
};

/// The plan of a whole model. Pure data besides the family; cheap to copy.
struct Backbone {
  std::shared_ptr<const Family> family;
  std::filesystem::path folder;
  std::vector<LayerPlan> chain;
  std::int64_t width = 0;
  std::int64_t max_positions = 0;
  std::int64_t vocab_size = 0;
  double initializer_range = 0.02;
  [[nodiscard]] int num_layers() const { return static_cast<int>(chain.size()); }
  [[nodiscard]] int num_blocks() const;
};

/// Reads config.json. Throws: ConfigError naming file and key: unknown model_type, missing or contradictory or
/// unsupported values.
Backbone read_backbone(const std::filesystem::path& folder, const HeadRequest& head);

}  // namespace espalier::model
