// SPDX-License-Identifier: Apache-2.0
// Fills the slots of layers from the stored tensors of a folder, and collects everything that is wrong, so that one
// error names it all.
#pragma once

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "model/slice.h"

namespace espalier::model {

/// The part of a stored tensor that the role is.
at::Tensor stored_part(const StoredWeight& stored, at::Tensor tensor);

/// Those of the stored names that the source has; of a tied weight's other places only the first. The stored copy of a
/// tied head is none of its own: the first of the places that it is tied to stands for it.
std::vector<std::string> present_names(const StoredWeight& stored, const WeightSource& source);

class WeightLoader {
 public:
  /// `shared`: weights of the backbone by canonical name, taken instead of loaded; null: none.
  /// Owns: nothing; all arguments must outlive the loader.
  WeightLoader(const Backbone& backbone, const WeightSource& source, const SliceOptions& options, MappedBytes& mapped,
               const std::map<std::string, at::Tensor>* shared = nullptr)
      : backbone_(backbone), source_(source), options_(options), mapped_(mapped), shared_(shared) {}

  /// Fills every slot of `layer` but those whose tensor check() will name.
  /// Throws: IoError where a file changed since it was opened.
  void load(Layer& layer);
  /// Throws: ConfigError naming every tensor that load() found missing, doubled, or of another shape or type.
  void check() const;

 private:
  void load_slot(const LayerPlan& plan, const std::string& role, const std::vector<std::int64_t>& shape,
                 at::ScalarType type, at::Tensor& slot);
  /// A head's linear is drawn by canonical name where the folder lacks it or has it for another number of labels.
  void load_head_linear(const LayerPlan& plan, const std::string& role, Linear& linear);
  /// A visual embedding is stored whole or starts fresh as a whole: a part that is missing is an error.
  [[nodiscard]] bool is_any_visual_stored(Layer& layer) const;
  [[nodiscard]] bool is_stored_for_head(const LayerPlan& plan, const std::string& role, const Linear& linear) const;
  [[nodiscard]] std::vector<std::string> present_names_of(const LayerPlan& plan, const std::string& role) const;

  const Backbone& backbone_;
  const WeightSource& source_;
  const SliceOptions& options_;
  MappedBytes& mapped_;
  const std::map<std::string, at::Tensor>* shared_;
  std::vector<std::string> problems_;
  /// What was converted or moved, by stored name, part and type: a tied weight is there once.
  std::map<std::tuple<std::string, std::int64_t, at::ScalarType>, at::Tensor> converted_;
};

}  // namespace espalier::model
