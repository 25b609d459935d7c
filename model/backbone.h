// SPDX-License-Identifier: Apache-2.0
// A backbone is a chain of layers: embedding, blocks, (norms), head. A family reads config.json into this plan and says
// which stored tensor fills which role; everything else is shared by all families. Dropouts are probabilities.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/block.h"
#include "model/family.h"

namespace espalier::model {

enum class LayerKind { kEmbedding, kPatchEmbedding, kBlock, kFinal, kHead };

/// A model is one stack of blocks, or an encoder whose output a decoder reads as memory; then the chain runs through
/// the encoder first.
enum class Stack { kOnly, kEncoder, kDecoder };

enum class Positions {
  kNone,           ///< relative or rotary positions, inside the blocks
  kInOrder,        ///< 0..T-1 for T tokens of a row
  kFollowPadding,  ///< pad_token_id + running count of tokens that are not padding, padding at pad_token_id (RoBERTa)
  kFollowMask,     ///< running count of attended tokens - 1, padding at -1 (OPT)
};

/// Visual tokens behind the text (Cho et al., VL-T5, ICML 2021, section 3.1; Sung et al., VL-Adapter, CVPR 2022):
/// RMS(W_f feature + b_f) + RMS(W_p [x1, x2, y1, y2, area] + b_p) + E_img[image] + token[vocabulary - 1 - object].
struct VisualEmbeddingSpec {
  std::int64_t feature_width = 2048;
  std::int64_t num_images = 2;  ///< most images of a row
  std::int64_t width = 0;
  bool has_order = true;  ///< the last two terms
  double norm_epsilon = 1e-6;
};

/// Token, position and type embeddings, then norm and dropout.
struct EmbeddingSpec {
  std::int64_t vocab_size = 0, width = 0;
  std::int64_t token_width = 0;  ///< of the token table, projected to `width` without bias; 0: the same
  double token_scale = 1;        ///< multiplies the token embeddings
  Positions positions = Positions::kInOrder;
  std::int64_t position_offset = 0;  ///< rows of the position table before position 0
  std::int64_t num_positions = 0;    ///< rows of the position table
  std::int64_t num_token_types = 0;  ///< 0: none
  std::int64_t pad_token_id = 0;     ///< its row gets no gradient; -1: none
  bool has_norm = true;
  double norm_epsilon = 1e-12;
  double dropout = 0;
  std::optional<VisualEmbeddingSpec> visual = {};  ///< of an encoder that reads images behind its text
};

/// Image [B, C, Y, Y] (C channels, Y x Y pixels) -> class token and one token for each patch (Dosovitskiy et al., ViT,
/// ICLR 2021, section 3.1).
struct PatchEmbeddingSpec {
  std::int64_t image_size = 224, num_channels = 3, patch_size = 16;  ///< sizes in pixels, of one side
  std::int64_t width = 0;
  double dropout = 0;
  [[nodiscard]] std::int64_t num_patches() const { return (image_size / patch_size) * (image_size / patch_size); }
};

/// What ends a stack: norm, dropout, projection, each if there.
struct FinalSpec {
  bool has_norm = true;
  NormKind norm_kind = NormKind::kLayerNorm;
  double norm_epsilon = 1e-5;
  std::int64_t width = 0;
  double dropout = 0;
  std::int64_t projected_width = 0;  ///< 0: no projection
};

/// Which token's state a pooled head reads.
enum class Pooling {
  kFirstToken,
  kMean,           ///< of the attended tokens
  kLastToken,      ///< the last one that is not padding
  kEndOfSequence,  ///< the last end-of-sequence token of input_ids
};

/// Pooled head (classification, regression): pool, [dropout], [dense, tanh], dropout, classifier. Language model head:
/// a linear map of every token to the vocabulary, frozen like the backbone.
struct HeadSpec {
  bool is_language_model = false;
  Pooling pooling = Pooling::kFirstToken;
  std::int64_t first_pooled = 0;  ///< of the mean: tokens before it (the class token of images) are left out
  std::int64_t width = 0;
  std::int64_t num_labels = 2;  ///< of a language model: its vocabulary
  bool has_dense = true;
  bool dense_is_pooler = false;  ///< the dense layer belongs to the pretrained model (BERT)
  bool has_bias = true;          ///< of the classifier, or of the language model head
  bool drops_pooled = false;     ///< drops before the dense layer too
  double dropout = 0;
  double initializer_range = 0.02;
  double input_scale = 1;                             ///< multiplies what the language model head reads
  bool stores_bias_row = false;                       ///< its bias is stored as [1, vocabulary] (BART)
  std::int64_t pad_token_id = -1, eos_token_id = -1;  ///< what the poolings by token look for
};

struct LayerPlan {
  LayerKind kind = LayerKind::kBlock;
  Stack stack = Stack::kOnly;
  std::string name;         ///< canonical: "embedding", "encoder.0", "head"; never depends on the layout
  std::uint64_t index = 0;  ///< place in the whole chain
  std::int64_t number = 0;  ///< of a block: place in its stack
  std::optional<BlockSpec> block = {};
  std::optional<EmbeddingSpec> embedding = {};
  std::optional<PatchEmbeddingSpec> patch_embedding = {};
  std::optional<FinalSpec> final = {};
  std::optional<HeadSpec> head = {};
};

/// Weights of the task, not of the frozen backbone: a pooled head, a visual embedding ("visual.*"). Every method trains
/// them; they are fp32 always, and where the folder lacks them they start fresh.
bool is_task_weight(const LayerPlan& layer, std::string_view role);

/// What the user asks of the head; the rest comes from the folder.
struct HeadRequest {
  std::int64_t num_labels = 0;  ///< 0: as the folder says
  /// auto: the family's own. mean: mean of the attended tokens, no dense layer, no dropout (a linear probe).
  std::string pooling = "auto";
  /// auto: as the folder's architecture says. pooled: classification or regression. language_model: next tokens.
  std::string kind = "auto";
};

/// The plan of a whole model. Pure data besides the family; cheap to copy.
struct Backbone {
  std::shared_ptr<const Family> family;
  std::filesystem::path folder;
  std::vector<LayerPlan> chain;
  std::int64_t width = 0;
  std::int64_t max_positions = 0;  ///< tokens of the longest row; 0: any
  std::int64_t vocab_size = 0;     ///< 0: the model reads no ids
  double initializer_range = 0.02;
  std::int64_t pad_token_id = 0;
  std::int64_t decoder_start_token_id = -1;  ///< of an encoder-decoder
  /// Generation: what ends a text, and what its first and last possible tokens must be (-1: anything).
  std::vector<std::int64_t> eos_token_ids = {};
  std::int64_t forced_first_token_id = -1, forced_last_token_id = -1;
  [[nodiscard]] int num_layers() const { return static_cast<int>(chain.size()); }
  [[nodiscard]] int num_blocks() const;
  [[nodiscard]] bool is_encoder_decoder() const { return chain.front().stack == Stack::kEncoder; }
  [[nodiscard]] const LayerPlan& layer(int index) const { return chain[static_cast<std::size_t>(index)]; }
  /// The images that the model reads behind its text; null: none.
  [[nodiscard]] const VisualEmbeddingSpec* visual() const {
    const auto& embedding = chain.front().embedding;
    return embedding && embedding->visual ? &*embedding->visual : nullptr;
  }
  [[nodiscard]] const HeadSpec& head() const { return *chain.back().head; }
};

/// Reads config.json. Throws: ConfigError naming file and key: unknown model_type, missing or contradictory or
/// unsupported values.
Backbone read_backbone(const std::filesystem::path& folder, const HeadRequest& head);

}  // namespace espalier::model
