// SPDX-License-Identifier: Apache-2.0
#include "model/families/roberta.h"

#include <spdlog/fmt/fmt.h>

#include "model/families/bert_encoder.h"

namespace espalier::model {

namespace {

class RobertaFamily : public BertEncoderFamily {
 public:
  explicit RobertaFamily(std::string model_type) : BertEncoderFamily(std::move(model_type), "roberta.") {}

 protected:
  [[nodiscard]] std::vector<std::string> head_names(const std::string& role) const override {
    if (role.starts_with("dense.")) return {"classifier." + role};
    return {"classifier.out_proj" + role.substr(role.rfind('.'))};
  }
  [[nodiscard]] std::vector<std::string_view> extra_beginnings() const override {
    return {"pooler.dense.", "classifier.", "lm_head.", "qa_outputs."};
  }
};

}  // namespace

Backbone plan_roberta(const ConfigFile& config, const HeadRequest& head) {
  auto backbone = plan_bert_encoder(config, head);
  backbone.family = std::make_shared<RobertaFamily>(config.text_or("model_type", ""));
  auto& embedding = *backbone.chain.front().embedding;
  // Positions start behind the padding's: pad_token_id + 1.
  embedding.positions_follow_padding = true;
  embedding.pad_token_id = config.integer_or("pad_token_id", 0, 1);
  backbone.max_positions = embedding.num_positions - embedding.pad_token_id - 1;
  if (backbone.max_positions < 1) {
    config.refuse("max_position_embeddings",
                  fmt::format("more than pad_token_id + 1, which is {}", embedding.pad_token_id + 1));
  }
  auto& head_spec = *backbone.chain.back().head;
  head_spec.drops_pooled = head_spec.has_dense;
  return backbone;
}

}  // namespace espalier::model
