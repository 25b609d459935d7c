// SPDX-License-Identifier: Apache-2.0
#include "stages.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/counting_allocator.h"
#include "common/error.h"
#include "model/loss.h"

namespace espalier::peft {

model::Backbone plan_config(const nlohmann::json& config, const model::HeadRequest& head) {
  const auto folder = std::filesystem::temp_directory_path() / ("espalier_peft_test_" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "config.json") << config.dump();
  model::Backbone backbone = model::read_backbone(folder, head);
  std::filesystem::remove_all(folder);
  return backbone;
}

model::Backbone plan_tiny(const TinyConfig& config) {
  const nlohmann::json text = {{"model_type", "bert"},
                               {"hidden_size", config.width},
                               {"num_hidden_layers", config.num_blocks},
                               {"num_attention_heads", config.num_heads},
                               {"intermediate_size", config.feed_forward_width},
                               {"vocab_size", config.vocab_size},
                               {"max_position_embeddings", config.num_positions},
                               {"type_vocab_size", 2},
                               {"hidden_act", "gelu"},
                               {"layer_norm_eps", 1e-12},
                               {"pad_token_id", 0},
                               {"initializer_range", 0.02},
                               {"hidden_dropout_prob", config.dropout},
                               {"attention_probs_dropout_prob", config.dropout}};
  return plan_config(text, {.num_labels = config.num_labels, .pooling = config.pooling});
}

TinyModel make_tiny(const TinyConfig& config) {
  TinyModel tiny;
  tiny.backbone = plan_tiny(config);
  std::vector<std::pair<std::string, std::vector<std::int64_t>>> shapes;
  model::visit_stored_tensors(
      tiny.backbone, [&](const model::LayerPlan&, const model::StoredWeight& stored,
                         const std::vector<std::int64_t>& shape) { shapes.emplace_back(stored.names.front(), shape); });
  tiny.weights = model::random_weights(shapes, 0.2, 7);
  return tiny;
}

model::NamedTensors make_batch() {
  const at::Tensor ids = (at::arange(24, at::kLong) * 7 % 37 + 3).view({3, 8});
  at::Tensor mask = at::ones({3, 8}, at::kLong);
  mask.select(0, 1).narrow(0, 5, 3).zero_();
  mask.select(0, 2).narrow(0, 7, 1).zero_();
  return {{"input_ids", ids * mask}, {"attention_mask", mask}};
}

model::ForwardContext training_context() {
  return {.is_training = true, .key = {.seed = 5, .step = 3, .micro_batch = 2}};
}

Stages::Stages(const TinyModel& tiny, const MethodConfig& config, int num_stages, const model::SliceOptions& options,
               bool runs_first_event) {
  for (const model::LayerRange range : model::plan_stages(tiny.backbone, num_stages)) {
    slices.push_back(std::make_unique<model::StageSlice>(tiny.backbone, range, *tiny.weights, options));
    methods.push_back(make_method(config, *slices.back(), *tiny.weights, /*seed=*/11));
  }
  if (runs_first_event) run_event(*this, /*event=*/0);
}

Step Stages::step(model::NamedTensors batch, const model::ForwardContext& context, const LossGradient& loss_gradient) {
  const auto& backbone = slices.front()->backbone();
  model::complete_decoder_inputs(backbone, batch);
  const model::BatchShape shape = model::batch_shape(backbone, batch);
  std::vector<StageResult> results;
  std::map<std::string, int> places;
  for (const TrainedTensor& tensor : trained()) {
    EXPECT_EQ(places[tensor.name]++ > 0, tensor.is_copy) << tensor.name;
  }
  model::Carry carry;
  for (std::size_t s = 0; s < methods.size(); ++s) {
    results.push_back(methods[s]->forward(std::move(carry), slices[s]->prepare(batch), context, /*keeps_pass=*/true));
    carry = results.back().outgoing;
    if (s + 1 < methods.size()) {
      const model::CarryPlan plan = methods[s]->plan_carry(slices[s]->range().end, shape);
      EXPECT_EQ(plan.size(), carry.size());
      for (const model::CarryEntry& entry : plan) {
        EXPECT_EQ(carry.at(entry.name).sizes().vec(), entry.sizes) << entry.name;
        EXPECT_EQ(carry.at(entry.name).scalar_type(), entry.dtype) << entry.name;
        EXPECT_FALSE(carry.at(entry.name).requires_grad()) << entry.name;
      }
    }
    // What a transfer does: the receiver owns other memory.
    for (auto& [name, value] : carry) {
      value = value.clone();
    }
  }

  Step step;
  step.logits = carry.at("logits");
  step.sent_back.resize(methods.size() - 1);
  model::Carry gradients{{"logits", loss_gradient(step.logits)}};
  for (std::size_t s = methods.size(); s-- > 0;) {
    if (results[s].pass == nullptr) {
      EXPECT_TRUE(gradients.empty()) << "stage " << s << " was sent a gradient that it has no use for";
      continue;
    }
    gradients = results[s].pass->backward(gradients, [&](int index, const at::Tensor& gradient) {
      const TrainedTensor& trained = methods[s]->trained()[static_cast<std::size_t>(index)];
      if (gradient.defined()) {
        EXPECT_EQ(gradient.sizes(), trained.value.sizes()) << trained.name;
        EXPECT_TRUE(gradient.is_contiguous()) << trained.name;
        const auto [place, is_new] = step.gradients.emplace(trained.name, gradient);
        if (!is_new) {
          place->second = place->second + gradient;
        }
      }
    });
    for (auto& [name, value] : gradients) {
      step.sent_back[s - 1].push_back(name);
      value = value.clone();
    }
  }
  return step;
}

at::Tensor Stages::evaluate(const model::NamedTensors& batch) {
  model::Carry carry;
  for (std::size_t s = 0; s < methods.size(); ++s) {
    StageResult result = methods[s]->forward(std::move(carry), slices[s]->prepare(batch), {}, /*keeps_pass=*/false);
    EXPECT_EQ(result.pass, nullptr);
    carry = std::move(result.outgoing);
  }
  return carry.at("logits");
}

std::vector<TrainedTensor> Stages::trained() const {
  std::vector<TrainedTensor> all;
  for (const auto& method : methods) {
    all.insert(all.end(), method->trained().begin(), method->trained().end());
  }
  return all;
}

at::Tensor Stages::trained(const std::string& name) const {
  for (const TrainedTensor& tensor : trained()) {
    if (tensor.name == name) {
      return tensor.value;
    }
  }
  ADD_FAILURE() << "no trained tensor " << name;
  return {};
}

at::Tensor run_bare(const TinyModel& tiny, const model::NamedTensors& batch, const model::SliceOptions& options,
                    std::vector<at::Tensor>* hidden) {
  const at::NoGradGuard no_grad;
  const model::StageSlice slice(tiny.backbone, {0, tiny.backbone.num_layers()}, *tiny.weights, options);
  const model::StageInputs inputs = slice.prepare(batch);
  model::Carry carry;
  for (const auto& layer : slice.layers()) {
    layer->forward(carry, inputs, {});
    if (hidden != nullptr && layer->plan().kind != model::LayerKind::kHead) {
      hidden->push_back(carry.at("hidden"));
    }
  }
  return carry.at("logits");
}

at::Tensor logits_gradient(const at::Tensor& logits) {
  const at::Tensor labels = at::arange(logits.size(0), at::kLong) % logits.size(1);
  return (at::softmax(logits, 1) - at::one_hot(labels, logits.size(1))) / logits.size(0);
}

LossGradient gradient_of_loss(const model::Backbone& backbone, const at::Tensor& labels, double* loss) {
  return [&backbone, labels, loss](const at::Tensor& logits) {
    const at::AutoGradMode with_gradient(true);
    const at::Tensor leaf = logits.detach().requires_grad_();
    const bool is_shifted = !backbone.is_encoder_decoder();
    const at::Tensor value = backbone.head().is_language_model
                                 ? model::token_loss(leaf, labels, is_shifted, model::count_targets(labels, is_shifted))
                                 : model::classification_loss(leaf, labels, labels.size(0));
    if (loss != nullptr) *loss = value.item<double>();
    return torch::autograd::grad({value}, {leaf}).front();
  };
}

double loss_of(const at::Tensor& logits) {
  const at::Tensor labels = at::arange(logits.size(0), at::kLong) % logits.size(1);
  return at::nll_loss(at::log_softmax(logits.to(at::kDouble), 1), labels).item<double>();
}

void stir(const Stages& stages, double size) {
  for (const TrainedTensor& tensor : stages.trained()) {
    const at::Tensor value = tensor.value.detach();
    const at::Tensor wave = (at::arange(value.numel()) + 1).view(value.sizes()).sin();
    value.add_(wave, tensor.name.ends_with("gate") ? size / 4 : size);
  }
}

void expect_finite_differences(Stages& stages, const std::string& entry) {
  Method& method = *stages.methods.front();
  const model::StageInputs inputs = stages.slices.front()->prepare(make_batch());
  StageResult result = method.forward({}, inputs, {}, /*keeps_pass=*/true);
  const at::Tensor sent = result.outgoing.at(entry);
  ASSERT_EQ(sent.scalar_type(), at::kDouble);
  const at::Tensor direction = at::arange(sent.numel(), at::kDouble).view(sent.sizes()).cos();
  std::vector<at::Tensor> gradients(method.trained().size());
  result.pass->backward({{entry, direction}}, [&](int index, const at::Tensor& gradient) {
    gradients[static_cast<std::size_t>(index)] = gradient;
  });
  const auto objective = [&] {
    return (method.forward({}, inputs, {}, /*keeps_pass=*/false).outgoing.at(entry) * direction).sum().item<double>();
  };
  // A trained table makes all that the embedding puts out fp32, too coarse for this; gradient_parity_test has that.
  const bool has_narrow_embedding =
      std::any_of(method.trained().begin(), method.trained().end(),
                  [](const TrainedTensor& tensor) { return tensor.name == "embedding.token.weight"; });
  int num_compared = 0;
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    const TrainedTensor& tensor = method.trained()[i];
    if (tensor.is_inert || (has_narrow_embedding && tensor.name.starts_with("embedding."))) continue;
    ++num_compared;
    const at::Tensor flat = tensor.value.detach().view(-1);
    float* values = flat.data_ptr<float>();
    for (const std::int64_t element : {std::int64_t{0}, flat.numel() / 2, flat.numel() - 1}) {
      const float middle = values[element];
      // The weights are fp32, so the step is what their rounding makes of it.
      const float above = middle + 1e-4F, below = middle - 1e-4F;
      values[element] = above;
      const double value_above = objective();
      values[element] = below;
      const double value_below = objective();
      values[element] = middle;
      const double expected = (value_above - value_below) / (static_cast<double>(above) - static_cast<double>(below));
      EXPECT_NEAR(gradients[i].view(-1)[element].item<double>(), expected, 1e-4 * std::max(1.0, std::abs(expected)))
          << tensor.name << "[" << element << "]";
    }
  }
  ASSERT_GT(num_compared, 0);
}

UsedBytes used_bytes(const TinyConfig& config, const MethodConfig& method) {
  install_counting_allocator();
  const TinyModel tiny = make_tiny(config);
  Stages stages(tiny, method, 1);
  static_cast<void>(stages.step(make_batch(), training_context()));  // MEFT checks it
  const auto inputs = stages.slices.front()->prepare(make_batch());
  const at::Tensor gradient = at::full({3, 3}, 0.1);
  const auto before = allocated_bytes().current;
  reset_peak_allocated_bytes();
  auto result = stages.methods.front()->forward({}, inputs, training_context(), /*keeps_pass=*/true);
  result.outgoing.clear();
  UsedBytes used{.kept = allocated_bytes().current - before};
  static_cast<void>(result.pass->backward({{"logits", gradient}}, [](int, const at::Tensor&) {}));
  result.pass.reset();
  used.peak = allocated_bytes().peak - before;
  EXPECT_EQ(allocated_bytes().current, before);
  return used;
}

std::string config_error(const std::function<void()>& run) {
  try {
    run();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

void run_event(const Stages& stages, std::int64_t event) {
  for (const auto& method : stages.methods) {
    Resampling* resampling = method->resampling();
    for (int j = 0; resampling != nullptr && j < resampling->num_weights(); ++j) resampling->resample(j, event);
  }
}

double relative_error(const at::Tensor& found, const at::Tensor& expected) {
  EXPECT_EQ(found.sizes(), expected.sizes());
  const at::Tensor wide = expected.to(at::kDouble);
  return (found.detach().to(at::kDouble) - wide).abs().max().item<double>() / wide.abs().max().item<double>();
}

std::vector<MethodConfig> all_methods() {
  MethodConfig lst{.method = "lst", .lst = {.reduction = 4}};
  MethodConfig dropped = lst;
  dropped.lst.layers = {0, 2};
  MethodConfig last{.method = "last", .last = {.rank = 4, .group_size = 2, .up_deviation = 0.3}};
  MethodConfig lora{.method = "lora", .lora = {.rank = 2, .dropout = 0.1}};
  MethodConfig rosa{.method = "rosa", .rosa = {.rank = 2}};
  MethodConfig houlsby{.method = "adapter", .adapter = {.rank = 4, .dropout = 0.1, .norms_trained = true}};
  MethodConfig parallel{.method = "adapter", .adapter = {.placement = "parallel", .rank = 4}};
  MethodConfig meft{.method = "meft", .meft = {.rank = 4}}, mirrored = meft, halved = meft;
  mirrored.meft.variant = 2;
  mirrored.meft.cached_top = 1;
  mirrored.meft.factors = "rosa";
  mirrored.rosa.rank = 2;
  halved.meft.variant = 3;
  halved.meft.factors = "lora";
  halved.lora = {.rank = 2, .dropout = 0.1, .targets = {"attention.query", "feed_forward.up"}};
  MethodConfig prompt{.method = "prompt"};
  prompt.prompt.tokens = 3;
  return {lst,
          dropped,
          last,
          lora,
          rosa,
          houlsby,
          parallel,
          meft,
          mirrored,
          halved,
          prompt,
          {.method = "bitfit"},
          {.method = "full"},
          {.method = "probe"}};
}

}  // namespace espalier::peft
