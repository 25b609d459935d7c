// SPDX-License-Identifier: Apache-2.0
#include "model/families/bert.h"

#include "model/families/bert_encoder.h"

namespace espalier::model {

namespace {

class BertFamily : public BertEncoderFamily {
 public:
  BertFamily() : BertEncoderFamily("bert", "bert.") {}

 protected:
  // BertPooler is the dense layer of the head.
  [[nodiscard]] std::vector<std::string> head_names(const std::string& role) const override {
    return role.starts_with("dense.") ? with_prefix("pooler." + role) : std::vector<std::string>{role};
  }
  [[nodiscard]] std::vector<std::string_view> extra_beginnings() const override {
    return {"pooler.dense.", "classifier.", "cls.", "qa_outputs."};
  }
};

}  // namespace

Backbone plan_bert(const ConfigFile& config, const HeadRequest& head) {
  auto backbone = plan_bert_encoder(config, head);
  backbone.family = std::make_shared<BertFamily>();
  return backbone;
}

}  // namespace espalier::model
