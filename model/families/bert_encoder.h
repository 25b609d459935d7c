// SPDX-License-Identifier: Apache-2.0
// What BERT and its descendants share: the keys of config.json and the stored names of embeddings and blocks. They
// differ in the prefix of the names, in positions and in the head.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "model/backbone.h"
#include "model/config_file.h"

namespace espalier::model {

/// A BERT-like family. A subclass says what its head is called and what else its folders may hold.
class BertEncoderFamily : public Family {
 public:
  BertEncoderFamily(std::string model_type, std::string prefix)
      : model_type_(std::move(model_type)), prefix_(std::move(prefix)) {}
  [[nodiscard]] std::string model_type() const override { return model_type_; }
  [[nodiscard]] StoredWeight stored_weight(const LayerPlan& layer, const std::string& role) const override;
  [[nodiscard]] bool is_known_extra(const std::string& stored_name) const override;

 protected:
  /// Stored names of a head role without the backbone's prefix; the first present one counts.
  [[nodiscard]] virtual std::vector<std::string> head_names(const std::string& role) const = 0;
  /// Beginnings of stored names that belong to other heads, prefix of the backbone taken off.
  [[nodiscard]] virtual std::vector<std::string_view> extra_beginnings() const = 0;
  /// `name` with and without the backbone's prefix: whether the folder holds a bare backbone or a model with a head.
  [[nodiscard]] std::vector<std::string> with_prefix(const std::string& name) const { return {prefix_ + name, name}; }

 private:
  std::string model_type_, prefix_;
};

/// Reads config.json into embedding, blocks and head, all as BERT has them. Throws: ConfigError naming file and key.
Backbone plan_bert_encoder(const ConfigFile& config, const HeadRequest& head);

}  // namespace espalier::model
