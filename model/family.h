// SPDX-License-Identifier: Apache-2.0
// What tells the families apart once the chain is planned: the names under which their folders store each role. A
// family is a table of names; no family has code for it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace espalier::model {

struct LayerPlan;

/// Where a role's tensor is stored.
struct StoredWeight {
  std::vector<std::string> names;  ///< alternatives, of which one is there ("bert.embeddings..." or "embeddings...")
  std::vector<std::string> tied_names = {};  ///< where the tensor is when none of `names` is: others use it too
  bool is_tied_head = false;                 ///< where both are and are equal, it is that of `tied_names` as well
  bool is_transposed = false;                ///< stored [in, out] (GPT-2)
  std::int64_t part = 0, num_parts = 1;      ///< which of equal parts of the (transposed) tensor's rows
  bool is_buffer = false;                    ///< never trained; zeros when it is absent
  bool is_task = false;                      ///< is_task_weight(): trained by every method, fresh when it is absent
};

/// Where one role, or the weight and the bias of one linear or norm, are stored.
struct StoredName {
  /// "{}" stands for the block's number. A leading '/' says that the name stands outside the base model: no prefix.
  std::vector<std::string> names;
  std::vector<std::string> tied_names = {};
  bool is_transposed = false;  ///< of weights only
  std::int64_t part = 0, num_parts = 1;
  bool is_whole = false;   ///< the name is complete: no ".weight" or ".bias" follows
  bool is_buffer = false;  ///< never trained; zeros when it is absent
};

/// Role, without ".weight" and ".bias" unless its name is whole -> stored name.
using RoleNames = std::map<std::string, StoredName, std::less<>>;

struct FamilyNames {
  std::string model_type;
  /// What a folder may put before the names of the base model; "" for the folder of a bare one.
  std::vector<std::string> prefixes = {""};
  /// By place in the chain: a layer's name without the block's number.
  std::map<std::string, RoleNames, std::less<>> places;
  /// Norms may be called gamma and beta, as in folders converted from the first TensorFlow checkpoints.
  bool has_old_norm_names = false;
  /// Beginnings of stored names, prefix taken off, that are legal and unused: buffers, other heads, unused copies.
  std::vector<std::string> extras = {};
  /// Ends of such names.
  std::vector<std::string> extra_ends = {};
};

class Family {
 public:
  explicit Family(FamilyNames names) : names_(std::move(names)) {}
  [[nodiscard]] const std::string& model_type() const { return names_.model_type; }
  /// Where a folder stores `role` ("attention.query.weight") of `layer`, names written out.
  /// Throws: InternalError for a layer or role that the family has no name for.
  [[nodiscard]] StoredWeight stored_weight(const LayerPlan& layer, const std::string& role) const;
  /// Whether a tensor that no role uses is legal all the same.
  [[nodiscard]] bool is_known_extra(const std::string& stored_name) const;

 private:
  FamilyNames names_;
};

}  // namespace espalier::model
