// SPDX-License-Identifier: Apache-2.0
// The oracle is the same recurrence under ordinary autograd: one graph over the whole chain, nothing recomputed.
#include "peft/meft.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "common/counting_allocator.h"
#include "common/error.h"
#include "model/block_layer.h"
#include "model/dropout.h"
#include "stages.h"

namespace espalier::peft {
namespace {

using ::testing::HasSubstr;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

MethodConfig meft(std::int64_t variant, MeftConfig options = {}) {
  options.variant = variant;
  options.rank = 4;
  return {.method = "meft", .meft = options};
}

TinyConfig of_depth(std::int64_t num_blocks, double dropout = 0.1) {
  TinyConfig config;
  config.num_blocks = num_blocks;
  config.dropout = dropout;
  return config;
}

/// Moves the adapters off their small start, so that no term is too small to be seen.
void stir_adapters(const Stages& stages, double size = 0.1) {
  for (const TrainedTensor& tensor : stages.trained()) {
    if (tensor.name.find("adapter") == std::string::npos) continue;
    const at::Tensor value = tensor.value.detach();
    value.add_((at::arange(value.numel()) + 1).view(value.sizes()).sin(), size);
  }
}

/// `value` forwards; scale * gradient to x and the gradient itself to the branch backwards.
struct Coupling : torch::autograd::Function<Coupling> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& /*x*/, const at::Tensor& /*branch*/,
                            const at::Tensor& value, double scale) {
    context->saved_data["scale"] = scale;
    return value.clone();
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const double scale = context->saved_data["scale"].toDouble();
    return {scale == 1 ? gradients[0] : gradients[0] * scale, gradients[0], {}, {}};
  }
};

/// The equations of docs/methods/meft.md, reading the adapters by name.
class ByTheBook {
 public:
  ByTheBook(const Stages& stages, const MeftConfig& config, const model::ForwardContext& context)
      : stages_(stages), config_(config), context_(context), slice_(*stages.slices.front()) {
    const auto compute = slice_.options().compute_type;
    compute_ = compute;
    real_ = at::promote_types(compute, at::kFloat);
  }

  Step step(model::NamedTensors batch, const LossGradient& loss_gradient = logits_gradient) {
    const at::AutoGradMode with_gradient(true);
    model::complete_decoder_inputs(slice_.backbone(), batch);
    inputs_ = slice_.prepare(batch);
    model::Carry carry;
    std::optional<Stream> first, second;
    std::int64_t number = 0;
    for (const auto& layer : slice_.layers()) {
      if (layer->plan().block && number++ >= config_.frozen_bottom) {
        if (!first) first = second = enter(carry.at("hidden"));
        climb(*layer, *first, *second, carry);
        continue;
      }
      if (first) {
        carry["hidden"] = merge(first->real, second->real, layer->plan()).to(compute_);
        first.reset();
      }
      layer->forward(carry, inputs_, context_);
    }
    Step step;
    step.logits = carry.at("logits").detach();
    variable_list trained;
    for (const auto& tensor : stages_.trained()) trained.push_back(tensor.value);
    const auto gradients = torch::autograd::grad({carry.at("logits")}, trained, {loss_gradient(step.logits)});
    for (std::size_t i = 0; i < trained.size(); ++i) step.gradients[stages_.trained()[i].name] = gradients[i];
    return step;
  }

 private:
  struct Stream {
    at::Tensor bits;  // int32, where the arithmetic is exact
    at::Tensor real;
  };
  [[nodiscard]] bool is_exact() const { return config_.inversion == "exact"; }
  [[nodiscard]] double unit() const { return std::ldexp(1.0, static_cast<int>(config_.fraction_bits)); }
  [[nodiscard]] at::Tensor rounded(const at::Tensor& x) const {
    return at::round(x.detach().to(at::kDouble) * unit()).to(at::kInt);
  }
  [[nodiscard]] at::Tensor value_of(const at::Tensor& bits) const { return (bits.to(at::kDouble) / unit()).to(real_); }

  [[nodiscard]] Stream enter(const at::Tensor& hidden) const {
    if (!is_exact()) return {{}, hidden.to(real_)};
    const at::Tensor bits = rounded(hidden);
    return {bits, Coupling::apply(hidden.to(real_), at::zeros_like(hidden, real_), value_of(bits), 1.0)};
  }
  [[nodiscard]] Stream join(const Stream& x, double scale, const at::Tensor& branch) const {
    if (!is_exact()) return {{}, Coupling::apply(x.real, branch, (x.real * scale + branch).detach(), scale)};
    const auto divisor = static_cast<std::int64_t>(std::round(1 / scale));
    const at::Tensor bits = at::floor_divide(x.bits, divisor) + rounded(branch);
    return {bits, Coupling::apply(x.real, branch, value_of(bits), scale)};
  }
  // An alias gathers what flows back from one reader: sums of two numbers have no order.
  static Stream alias(const Stream& x) { return {x.bits, at::alias(x.real)}; }

  void climb(model::Layer& layer, Stream& x1, Stream& x2, model::Carry& carry) const {
    const bool is_third = config_.variant == 3;
    const double lambda = config_.lambda != 0 ? config_.lambda : config_.variant == 2 ? 1 : 0.1;
    const double beta = config_.beta != 0 ? config_.beta : config_.variant == 1 ? 1 : 0.1;
    const auto run = [&](bool is_f, const at::Tensor& x) {
      if (is_third) return part(layer, is_f, x, carry);
      return config_.variant == (is_f ? 1 : 2) ? whole(layer, x, carry) : between(layer, x);
    };
    x1 = alias(x1);
    x2 = alias(x2);
    const Stream y1 = join(x1, lambda, run(true, at::alias(x2.real)));
    const Stream y2 = join(x2, beta, run(false, at::alias(y1.real)));
    x1 = is_third ? y1 : y2;
    x2 = is_third ? y2 : y1;
  }
  at::Tensor whole(model::Layer& layer, const at::Tensor& x, model::Carry& carry) const {
    carry["hidden"] = x.to(compute_);
    layer.forward(carry, inputs_, context_);
    return carry.at("hidden").to(real_);
  }
  at::Tensor part(model::Layer& layer, bool is_attention, const at::Tensor& x, const model::Carry& carry) const {
    const auto& block = *layer.block();
    const auto around = model::block_inputs(layer.plan(), carry, inputs_);
    return (is_attention ? block.attention_part(x.to(compute_), around, context_)
                         : block.feed_forward_part(x.to(compute_), context_))
        .to(real_);
  }
  at::Tensor between(const model::Layer& layer, const at::Tensor& x) const {
    const std::string name = layer.plan().name + ".rev_adapter.";
    const auto weight = [&](const char* role) { return stages_.trained(name + role).to(compute_); };
    at::Tensor input = x.to(compute_);
    if (config_.norm_in_adapter) {
      input = at::layer_norm(input, {input.size(-1)}, weight("norm.weight"), weight("norm.bias"));
    }
    at::Tensor narrow = at::linear(input, weight("down.weight"), weight("down.bias"));
    narrow = model::activate(narrow, layer.plan().block->activation);
    if (context_.is_training) {
      narrow = model::dropout(narrow, layer.plan().block->hidden_dropout,
                              model::dropout_key(context_, {RandomDomain::kAdapter, layer.plan().index},
                                                 model::DropoutSite::kReversibleAdapter));
    }
    return at::linear(narrow, weight("up.weight"), weight("up.bias")).to(real_);
  }
  [[nodiscard]] at::Tensor merge(const at::Tensor& x1, const at::Tensor& x2, const model::LayerPlan& reader) const {
    const auto& below = slice_.backbone().layer(static_cast<int>(reader.index) - 1);
    if (config_.merge == "concat") {
      const std::string stack = below.name.substr(0, below.name.rfind('.'));
      return at::linear(at::cat({x1, x2}, -1), stages_.trained(stack + ".merge.weight").to(real_));
    }
    const bool is_sum = config_.merge == "sum" || (config_.merge == "auto" && below.block->is_causal);
    if (!is_sum) return (x1 + x2) * 0.5;
    return config_.variant == 2 ? x1 + 0.1 * x2 : 0.1 * x1 + x2;
  }

  const Stages& stages_;
  MeftConfig config_;
  model::ForwardContext context_;
  const model::StageSlice& slice_;
  at::ScalarType compute_, real_;
  model::StageInputs inputs_;
};

void expect_same_bits(const Step& found, const Step& expected) {
  EXPECT_TRUE(at::equal(found.logits, expected.logits));
  ASSERT_EQ(found.gradients.size(), expected.gradients.size());
  for (const auto& [name, gradient] : expected.gradients) {
    EXPECT_TRUE(at::equal(found.gradients.at(name), gradient))
        << name << " differs by " << (found.gradients.at(name) - gradient).abs().max().item<double>();
  }
}

/// Largest difference of a gradient, relative to the gradient's largest element.
double gradient_error(const Step& found, const Step& expected) {
  double error = 0;
  EXPECT_EQ(found.gradients.size(), expected.gradients.size());
  for (const auto& [name, gradient] : expected.gradients) {
    const at::Tensor truth = gradient.to(at::kDouble);
    const double size = truth.abs().max().item<double>();
    EXPECT_GT(size, 0) << name;
    error = std::max(error, (found.gradients.at(name).to(at::kDouble) - truth).abs().max().item<double>() / size);
  }
  return error;
}

double inversion_error(const Stages& stages) {
  return dynamic_cast<const MeftMethod&>(*stages.methods.front()).inversion_error().value();
}

class Variants : public testing::TestWithParam<std::int64_t> {};

TEST_P(Variants, ExactInversionEqualsOrdinaryAutogradBitByBitOn24Layers) {
  const TinyModel tiny = make_tiny(of_depth(24));
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    SCOPED_TRACE(at::toString(type));
    const MethodConfig config = meft(GetParam());
    Stages stages(tiny, config, 1, {.compute_type = type});
    stir_adapters(stages);
    const Step found = stages.step(make_batch(), training_context());
    EXPECT_EQ(inversion_error(stages), 0);
    expect_same_bits(found, ByTheBook(stages, config.meft, training_context()).step(make_batch()));
  }
}

TEST_P(Variants, OptionsComputeTheirEquations) {
  const TinyModel tiny = make_tiny({});
  std::vector<MeftConfig> all = {{.merge = "sum"}, {.merge = "concat"}, {.frozen_bottom = 2}, {.fraction_bits = 16}};
  if (GetParam() != 3) all.push_back({.norm_in_adapter = true});
  for (const double scale : {1.0, 0.5, 0.125, 0.1}) all.push_back({.lambda = scale, .beta = scale});
  for (const MeftConfig& options : all) {
    const MethodConfig config = meft(GetParam(), options);
    SCOPED_TRACE(::testing::Message() << options.merge << " " << options.lambda << " " << options.frozen_bottom);
    Stages stages(tiny, config, 1);
    stir_adapters(stages);
    const Step found = stages.step(make_batch(), training_context());
    EXPECT_EQ(inversion_error(stages), 0);
    expect_same_bits(found, ByTheBook(stages, config.meft, training_context()).step(make_batch()));
  }
}

TEST_P(Variants, FactorsOfLoraTrainInsideTheBlocks) {
  const TinyModel tiny = make_tiny({});
  MethodConfig config = meft(GetParam(), {.factors = "lora"});
  config.lora = {.rank = 2, .dropout = 0.1, .targets = {"attention.value", "feed_forward.down"}};
  Stages stages(tiny, config, 1);
  stir_adapters(stages);
  int num_factors = 0;
  for (const TrainedTensor& tensor : stages.trained()) {
    if (!tensor.name.ends_with("lora_b")) continue;
    tensor.value.detach().copy_(at::arange(tensor.value.numel()).view(tensor.value.sizes()).sin() * 0.1);
    ++num_factors;
  }
  EXPECT_EQ(num_factors, 4 * 2);
  const Step found = stages.step(make_batch(), training_context());
  EXPECT_EQ(inversion_error(stages), 0);
  expect_same_bits(found, ByTheBook(stages, config.meft, training_context()).step(make_batch()));
}

void run_event(const Stages& stages, std::int64_t event) {
  for (const auto& method : stages.methods) {
    Resampling* resampling = method->resampling();
    ASSERT_NE(resampling, nullptr);
    for (int j = 0; j < resampling->num_weights(); ++j) resampling->resample(j, event);
  }
}

TEST_P(Variants, FactorsOfRosaTrainInsideTheBlocksAfterEveryEvent) {
  const TinyModel tiny = make_tiny({});
  MethodConfig config = meft(GetParam(), {.factors = "rosa"});
  config.rosa.rank = 3;
  config.rosa.targets = {"attention.query", "attention.output", "feed_forward.up", "feed_forward.down"};
  for (const bool trains_head : {true, false}) {
    config.rosa.head_trained = trains_head;
    Stages stages(tiny, config, 1);
    stir_adapters(stages);
    for (const std::int64_t event : {1, 2}) {
      run_event(stages, event);
      const Step found = stages.step(make_batch(), training_context());
      EXPECT_EQ(inversion_error(stages), 0);
      const auto is_factor = [](const auto& named) { return named.first.find(".rosa_") != std::string::npos; };
      EXPECT_EQ(std::count_if(found.gradients.begin(), found.gradients.end(), is_factor), 4 * 4 * 2);
      EXPECT_EQ(found.gradients.contains("head.classifier.weight"), trains_head);
      expect_same_bits(found, ByTheBook(stages, config.meft, training_context()).step(make_batch()));
    }
  }
}

TEST_P(Variants, FactorsOfRosaLeaveTheFunctionInAnEventAndKeepWhatTheySplit) {
  const TinyModel tiny = make_tiny({});
  MethodConfig config = meft(GetParam(), {.factors = "rosa"});
  config.rosa.rank = 3;
  Stages stages(tiny, config, 2);
  stir_adapters(stages);
  const auto kept = stages.methods.front()->kept_tensors();
  EXPECT_EQ(kept.size(), 2U * 4U) << "query, key, value and output of two blocks";
  for (const std::int64_t event : {1, 2}) {
    for (const TrainedTensor& tensor : stages.trained()) {
      if (tensor.name.find(".rosa_") != std::string::npos) {
        tensor.value.detach().add_(at::arange(tensor.value.numel()).view(tensor.value.sizes()).sin(), 0.02);
      }
    }
    const at::Tensor before = stages.evaluate(make_batch());
    const at::Tensor rest = kept.at("encoder.1.attention.query.weight").clone();
    const at::Tensor factor = stages.trained("encoder.1.attention.query.rosa_b").detach().clone();
    run_event(stages, event);
    EXPECT_TRUE(at::allclose(stages.evaluate(make_batch()), before, 0, 1e-4));
    EXPECT_FALSE(at::allclose(kept.at("encoder.1.attention.query.weight"), rest, 0, 1e-3));
    EXPECT_FALSE(at::allclose(stages.trained("encoder.1.attention.query.rosa_b"), factor, 0, 1e-3));
  }
}

TEST_P(Variants, CachedBlocksGiveWhatReversibleOnesGive) {
  const TinyModel tiny = make_tiny({});
  Stages all(tiny, meft(GetParam()), 1);
  const Step expected = all.step(make_batch(), training_context());
  for (const MeftConfig& options : {MeftConfig{.reversible_layers = 0}, MeftConfig{.reversible_layers = 2},
                                    MeftConfig{.cached_top = 1}, MeftConfig{.cached_top = 4}}) {
    for (const int num_stages : {1, 2, 4}) {
      expect_same_bits(Stages(tiny, meft(GetParam(), options), num_stages).step(make_batch(), training_context()),
                       expected);
    }
  }
}

TEST_P(Variants, GradientsInDoubleEqualThoseOfTheRealRecurrence) {
  const TinyModel tiny = make_tiny(of_depth(3));
  const MethodConfig config = meft(GetParam(), {.inversion = "float"});
  Stages stages(tiny, config, 1, {.compute_type = at::kDouble});
  stir_adapters(stages);
  for (const TrainedTensor& tensor : stages.trained()) tensor.value.set_data(tensor.value.to(at::kDouble));
  const Step found = stages.step(make_batch(), training_context());
  EXPECT_LT(inversion_error(stages), 1e-9);
  const Step expected = ByTheBook(stages, config.meft, training_context()).step(make_batch());
  EXPECT_TRUE(at::equal(found.logits, expected.logits));
  EXPECT_LT(gradient_error(found, expected), 1e-9);
}

TEST_P(Variants, ExactGradientsAreThoseOfTheRealRecurrenceUpToRounding) {
  const TinyModel tiny = make_tiny(of_depth(12));
  const MethodConfig exact = meft(GetParam()), real = meft(GetParam(), {.inversion = "float"});
  Stages stages(tiny, exact, 1), in_double(tiny, real, 1, {.compute_type = at::kDouble});
  stir_adapters(stages);
  stir_adapters(in_double);
  const Step expected = ByTheBook(in_double, real.meft, training_context()).step(make_batch());
  const Step found = stages.step(make_batch(), training_context());
  EXPECT_TRUE(at::allclose(found.logits, expected.logits.to(at::kFloat), 0, 1e-4));
  EXPECT_LT(gradient_error(found, expected), 2e-4);
}

TEST_P(Variants, BeginNearTheBackboneAndAtItsRecurrenceWithoutAdapters) {
  const TinyModel tiny = make_tiny(of_depth(4, /*dropout=*/0));
  Stages stages(tiny, meft(GetParam(), {.merge = "sum"}), 2);
  const at::Tensor start = stages.evaluate(make_batch());
  for (const TrainedTensor& tensor : stages.trained()) {
    if (tensor.name.find("adapter") != std::string::npos) tensor.value.detach().zero_();
  }
  const at::Tensor without = stages.evaluate(make_batch());
  EXPECT_LT((start - without).norm().item<double>(), 0.1 * without.norm().item<double>());

  // MEFT1: y1 - layer(x2) = 0.1 x1, y2 = x2. MEFT2 mirrors it.
  const model::StageSlice bare(tiny.backbone, {0, tiny.backbone.num_layers()}, *tiny.weights, {});
  const model::StageInputs inputs = bare.prepare(make_batch());
  model::Carry carry;
  at::Tensor older, newer;
  for (const auto& layer : bare.layers()) {
    if (!layer->plan().block) {
      if (newer.defined()) carry["hidden"] = 0.1 * older + newer;
      layer->forward(carry, inputs, {});
      older = newer = carry.at("hidden");
    } else if (GetParam() != 3) {
      carry["hidden"] = newer;
      layer->forward(carry, inputs, {});
      older = 0.1 * older + carry.at("hidden");
      std::swap(older, newer);
    } else {
      older =
          0.1 * older + layer->block()->attention_part(newer, model::block_inputs(layer->plan(), carry, inputs), {});
      newer = 0.1 * newer + layer->block()->feed_forward_part(older, {});
    }
  }
  EXPECT_TRUE(at::allclose(without, carry.at("logits"), 0, 1e-4));
}

INSTANTIATE_TEST_SUITE_P(Meft, Variants, testing::Values(1, 2, 3),
                         [](const auto& tested) { return std::to_string(tested.param); });

class Families : public testing::TestWithParam<const char*> {
 protected:
  Families() {
    const auto folder = std::filesystem::path(ESPALIER_SOURCE_DIR) / "tests/golden" / (GetParam() + std::string("_1"));
    tiny_ = {model::read_backbone(folder, {}), model::open_model_folder(folder)};
    const auto golden = model::open_safetensors(folder / "golden.safetensors");
    for (const auto* name : {"input_ids", "attention_mask", "token_type_ids", "pixel_values", "labels", "vis_feats",
                             "vis_boxes", "img_order_ids", "obj_order_ids"}) {
      if (golden->contains(name)) batch_[name] = golden->get(name);
    }
  }
  static at::Tensor wave(const at::Tensor& logits) {
    return (at::arange(logits.numel()) + 1).sin().view(logits.sizes());
  }

  TinyModel tiny_;
  model::NamedTensors batch_;
};

TEST_P(Families, EqualOrdinaryAutogradAndAreTheSameForEveryCut) {
  const bool has_decoder = tiny_.backbone.is_encoder_decoder();
  for (const std::int64_t variant : {1, 2, 3}) {
    for (const std::int64_t frozen_bottom : {0, 1, 4}) {
      if ((has_decoder && variant == 3) || frozen_bottom >= tiny_.backbone.num_blocks()) continue;
      SCOPED_TRACE(::testing::Message() << "MEFT" << variant << ", frozen " << frozen_bottom);
      const MethodConfig config = meft(variant, {.frozen_bottom = frozen_bottom});
      Stages whole(tiny_, config, 1);
      stir_adapters(whole);
      const Step found = whole.step(batch_, training_context(), wave);
      const Step expected = ByTheBook(whole, config.meft, training_context()).step(batch_, wave);
      if (has_decoder) {
        // What the decoder's blocks give the memory is summed block by block, not read by read.
        EXPECT_TRUE(at::equal(found.logits, expected.logits));
        EXPECT_LT(gradient_error(found, expected), 1e-5);
      } else {
        expect_same_bits(found, expected);
      }
      for (int num_stages = 2; num_stages <= tiny_.backbone.num_blocks(); ++num_stages) {
        Stages cut(tiny_, config, num_stages);
        stir_adapters(cut);
        expect_same_bits(cut.step(batch_, training_context(), wave), found);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, Families,
                         testing::Values("bert", "roberta", "t5", "clip_t5", "bart", "opt", "gpt2", "llama", "vit"),
                         [](const auto& family) { return std::string(family.param); });

TEST(FloatInversion, IsRefusedAboveItsLimit) {
  const TinyModel tiny = make_tiny(of_depth(12));
  Stages stages(tiny, meft(1, {.inversion = "float"}), 1);
  try {
    static_cast<void>(stages.step(make_batch(), training_context()));
    ADD_FAILURE() << "12 blocks were inverted in fp32";
  } catch (const NumericError& error) {
    EXPECT_THAT(error.what(), HasSubstr("encoder.0: expected inverted streams with a relative error"));
    EXPECT_THAT(error.what(), HasSubstr("peft.meft.inversion=exact"));
  }
}

TEST(AnchoredInversion, StartsAgainFromEveryAnchor) {
  const TinyModel tiny = make_tiny(of_depth(12));
  const MethodConfig config = meft(1, {.inversion = "anchored", .anchor_layers = 2});
  Stages whole(tiny, config, 1);
  const Step expected = whole.step(make_batch(), training_context());
  EXPECT_LT(inversion_error(whole), 1e-4);
  const MethodConfig cached = meft(1, {.reversible_layers = 0, .inversion = "float"});
  EXPECT_LT(gradient_error(expected, Stages(tiny, cached, 1).step(make_batch(), training_context())), 1e-3);
  for (const int num_stages : {2, 3, 6}) {
    expect_same_bits(Stages(tiny, config, num_stages).step(make_batch(), training_context()), expected);
  }
}

TEST(MeftMethod, SendsNothingBackBelowItsFirstBlock) {
  const TinyModel tiny = make_tiny({});
  Stages stages(tiny, meft(1, {.frozen_bottom = 2}), 4);
  using Names = std::vector<std::string>;
  EXPECT_EQ(stages.step(make_batch(), training_context()).sent_back,
            (std::vector<Names>{{}, {}, {"stream_1", "stream_2"}}));
}

TEST(MeftMethod, ReportsStreamsThatLeaveTheirRange) {
  const TinyModel tiny = make_tiny({});
  Stages stages(tiny, meft(1, {.fraction_bits = 28}), 1);
  stages.trained("encoder.2.rev_adapter.up.bias").detach().fill_(9);
  try {
    static_cast<void>(stages.step(make_batch(), training_context()));
    ADD_FAILURE() << "9 does not fit into +-8";
  } catch (const NumericError& error) {
    EXPECT_THAT(error.what(), HasSubstr("encoder.2: expected streams within +-8"));
  }
}

struct UsedBytes {
  std::int64_t kept = 0, peak = 0;  ///< between forward and backward, and at most; both above what lived before
};

UsedBytes used_bytes(std::int64_t num_blocks, const MethodConfig& config) {
  const TinyModel tiny = make_tiny(of_depth(num_blocks));
  Stages stages(tiny, config, 1);
  static_cast<void>(stages.step(make_batch(), training_context()));  // the first micro-batch is checked
  const auto inputs = stages.slices.front()->prepare(make_batch());
  const at::Tensor gradient = at::full({3, 3}, 0.1);
  const auto before = allocated_bytes().current;
  reset_peak_allocated_bytes();
  auto result = stages.methods.front()->forward({}, inputs, training_context(), /*keeps_pass=*/true);
  result.outgoing.clear();
  UsedBytes used{.kept = allocated_bytes().current - before};
  result.pass->backward({{"logits", gradient}}, [](int, const at::Tensor&) {});
  result.pass.reset();
  used.peak = allocated_bytes().peak - before;
  EXPECT_EQ(allocated_bytes().current, before);
  return used;
}

TEST(MeftMethod, KeepsTheRemaindersOfABlockAndNoMore) {
  install_counting_allocator();
  constexpr std::int64_t kElements = 3 * 8 * 16;
  for (const std::int64_t variant : {1, 2, 3}) {
    SCOPED_TRACE(variant);
    const auto shallow = used_bytes(6, meft(variant)), deep = used_bytes(12, meft(variant));
    const std::int64_t remainders = 6 * (variant == 3 ? 2 : 1) * kElements / 2;  // 4 bits each
    EXPECT_EQ(deep.kept - shallow.kept, remainders);
    EXPECT_EQ(deep.peak - shallow.peak, remainders);
    const auto whole = meft(variant, {.lambda = 1, .beta = 1});
    EXPECT_EQ(used_bytes(12, whole).kept, used_bytes(6, whole).kept);

    const auto cached = meft(variant, {.reversible_layers = 0});
    EXPECT_GT(used_bytes(12, cached).kept - used_bytes(6, cached).kept, 6 * 10 * kElements * 4);
  }
}

TEST(FloatInversion, MultipliesItsErrorByOneOverLambdaForEachBlock) {
  const TinyModel tiny = make_tiny(of_depth(12));
  const auto error = [&](std::int64_t num_reversible, MeftConfig options) {
    options.inversion = "float";
    options.reversible_layers = num_reversible;
    options.error_limit = 1e9;
    Stages stages(tiny, meft(1, options), 1);
    static_cast<void>(stages.step(make_batch(), training_context()));
    return inversion_error(stages);
  };
  EXPECT_LT(error(1, {}), 1e-5);
  EXPECT_GT(error(6, {}), 1e-3);
  const double growth = std::pow(error(6, {}) / error(2, {}), 1.0 / 4);
  EXPECT_GT(growth, 4);
  EXPECT_LT(growth, 25);
  EXPECT_LT(error(6, {.lambda = 0.5}), 1e-3);
}

}  // namespace
}  // namespace espalier::peft
