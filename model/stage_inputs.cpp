// SPDX-License-Identifier: Apache-2.0
// What the layers of a stage read of a micro-batch: checks, masks, shifted targets, rotary angles, shapes.
// B batch, T tokens, U target tokens, V visual tokens, N prompts, F width of their features, W head width
#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <limits>

#include "common/error.h"
#include "model/input_names.h"
#include "model/slice.h"

namespace espalier::model {

namespace {

const at::Tensor* find(const NamedTensors& tensors, const std::string& name) {
  const auto found = tensors.find(name);
  return found == tensors.end() ? nullptr : &found->second;
}

/// Ids outside [0, num_rows) would read past a table, on a GPU without a word.
void check_ids(const NamedTensors& tensors, const std::string& name, std::int64_t num_rows, std::string_view key) {
  const auto* ids = find(tensors, name);
  if (ids == nullptr || ids->numel() == 0) return;
  const auto lowest = ids->min().item<std::int64_t>();
  const auto highest = ids->max().item<std::int64_t>();
  if (lowest >= 0 && highest < num_rows) return;
  throw ConfigError(
      fmt::format("{}: expected ids from 0 to {} ({} of the model); found {}; was the data prepared for another model?",
                  name, num_rows - 1, key, lowest < 0 ? lowest : highest));
}

/// Ids [rows, tokens] and the arrays that must have their shape. `num_prompts`: places before the tokens.
void check_tokens(const Backbone& backbone, const NamedTensors& tensors, const std::string& name,
                  std::initializer_list<const char*> companions, std::int64_t num_prompts = 0) {
  const auto* ids = find(tensors, name);
  if (ids == nullptr || ids->dim() != 2) {
    throw ConfigError(fmt::format("{}: expected an array [rows, tokens]; found none of that shape", name));
  }
  for (const auto* companion : companions) {
    const auto* other = find(tensors, companion);
    if (other != nullptr && other->sizes() != ids->sizes()) {
      throw ConfigError(fmt::format("{}: expected the shape of {}, [{}]; found [{}]", companion, name,
                                    fmt::join(ids->sizes().vec(), ", "), fmt::join(other->sizes().vec(), ", ")));
    }
  }
  if (backbone.max_positions > 0 && ids->size(1) + num_prompts > backbone.max_positions) {
    throw ConfigError(
        fmt::format("{}: expected at most {} tokens a row (positions of the model{}); found {}; shorten the rows", name,
                    backbone.max_positions - num_prompts,
                    num_prompts > 0 ? fmt::format(" less {} prompts", num_prompts) : "", ids->size(1)));
  }
  check_ids(tensors, name, backbone.vocab_size, "vocab_size");
}

void check_pixels(const PatchEmbeddingSpec& spec, const NamedTensors& tensors) {
  const auto* pixels = find(tensors, "pixel_values");
  const std::vector<std::int64_t> expected = {spec.num_channels, spec.image_size, spec.image_size};
  if (pixels == nullptr || pixels->dim() != 4 || pixels->sizes().slice(1) != at::IntArrayRef(expected)) {
    throw ConfigError(fmt::format(
        "pixel_values: expected an array [rows, {}] (num_channels and image_size of the model, whose positions are for "
        "that size alone); found {}; prepare the images with --image-size {}",
        fmt::join(expected, ", "),
        pixels == nullptr ? std::string("none") : fmt::format("[{}]", fmt::join(pixels->sizes().vec(), ", ")),
        spec.image_size));
  }
}

void check_shape(const NamedTensors& tensors, const std::string& name, const std::vector<std::int64_t>& expected) {
  const auto* tensor = find(tensors, name);
  if (tensor == nullptr || tensor->sizes() == at::IntArrayRef(expected)) return;
  throw ConfigError(fmt::format("{}: expected an array [{}]; found [{}]", name, fmt::join(expected, ", "),
                                fmt::join(tensor->sizes().vec(), ", ")));
}

void check_visual(const Backbone& backbone, const NamedTensors& tensors, bool goes_on) {
  const auto* spec = backbone.visual();
  if (spec == nullptr) {
    for (const auto* name : kVisualInputs) {
      if (find(tensors, name) == nullptr) continue;
      throw ConfigError(
          fmt::format("{}: expected no visual inputs, since the model reads text alone; found [{}]; take a CLIP-T5 "
                      "folder (config.json with feat_dim) or data without images",
                      name, fmt::join(find(tensors, name)->sizes().vec(), ", ")));
    }
    return;
  }
  const auto* features = find(tensors, "vis_feats");
  const auto rows = tensors.at("input_ids").size(0);
  const auto width = goes_on ? 0 : spec->feature_width;
  if (features == nullptr || features->dim() != 3 || features->size(0) != rows || features->size(2) != width) {
    throw ConfigError(fmt::format(
        "vis_feats: expected an array [{}, visual tokens, {}] (rows, feat_dim of the model); found {}", rows, width,
        features == nullptr ? std::string("none") : fmt::format("[{}]", fmt::join(features->sizes().vec(), ", "))));
  }
  check_shape(tensors, "vis_boxes", {rows, features->size(1), 4});
  check_shape(tensors, "img_order_ids", {rows, features->size(1)});
  check_shape(tensors, "obj_order_ids", {rows, features->size(1)});
  check_ids(tensors, "img_order_ids", spec->num_images, "n_images");
  check_ids(tensors, "obj_order_ids", backbone.vocab_size, "vocab_size");
}

/// Given positions count from 0 behind the prompts, for every row or for all rows alike.
void check_positions(const Backbone& backbone, const NamedTensors& tensors, std::int64_t num_prompts) {
  const auto* positions = find(tensors, "position_ids");
  if (positions == nullptr) return;
  const auto& ids = tensors.at("input_ids");
  const bool is_one_for_all = positions->dim() == 2 && positions->size(0) == 1 && positions->size(1) == ids.size(1);
  if (!is_one_for_all) check_shape(tensors, "position_ids", {ids.size(0), ids.size(1)});
  const auto num_positions =
      backbone.max_positions > 0 ? backbone.max_positions - num_prompts : std::numeric_limits<std::int64_t>::max();
  check_ids(tensors, "position_ids", num_positions, "positions");
}

/// A head that reads the state of the end-of-sequence token finds one in every row. Here, since every stage has the ids
/// and has them on the host; the head would have to wait for its device, and the other stages for it.
void check_ends(const HeadSpec& head, const at::Tensor& ids) {
  if (head.is_language_model || head.pooling != Pooling::kEndOfSequence) return;
  const auto has_end = ids.eq(head.eos_token_id).any(1);  // [B]
  if (has_end.all().item<bool>()) return;
  throw ConfigError(
      fmt::format("input_ids: expected the end-of-sequence token ({}) in every row, since the head reads its state; "
                  "found {} of {} rows without one: raise data.max_length, which cuts it off longer rows, or prepare "
                  "the data with the model's own tokenizer",
                  head.eos_token_id, ids.size(0) - has_end.sum().item<std::int64_t>(), ids.size(0)));
}

void check_inputs(const Backbone& backbone, const NamedTensors& tensors, std::int64_t num_prompts, bool goes_on) {
  const auto& first = backbone.chain.front();
  if (first.patch_embedding) return check_pixels(*first.patch_embedding, tensors);
  if (goes_on) {
    check_tokens(backbone, tensors, "input_ids", {});
  } else {
    check_tokens(backbone, tensors, "input_ids", {"attention_mask", "token_type_ids"}, num_prompts);
    check_ends(backbone.head(), tensors.at("input_ids"));
  }
  check_positions(backbone, tensors, num_prompts);
  check_visual(backbone, tensors, goes_on);
  if (first.embedding->num_token_types > 0) {
    check_ids(tensors, "token_type_ids", first.embedding->num_token_types, "type_vocab_size");
  }
  if (backbone.is_encoder_decoder()) {
    check_tokens(backbone, tensors, "decoder_input_ids", {"decoder_attention_mask"});
    if (tensors.at("decoder_input_ids").size(0) != tensors.at("input_ids").size(0)) {
      throw ConfigError(fmt::format("decoder_input_ids: expected {} rows, as many as input_ids has; found {}",
                                    tensors.at("input_ids").size(0), tensors.at("decoder_input_ids").size(0)));
    }
  }
}

/// [B, T] of 1 (attend) and 0 -> [B, 1, 1, T] of 0 and the lowest finite number, or -infinity where a causal row may
/// see nothing but padding; undefined when everything is attended.
at::Tensor attention_bias_of(const at::Tensor* mask, bool is_causal, const SliceOptions& options) {
  if (mask == nullptr) return {};
  const auto is_padding = mask->eq(0);
  if (!is_padding.any().item<bool>()) return {};
  const auto zeros = at::zeros(mask->sizes(), at::TensorOptions().dtype(at::kFloat));
  const double lowest = is_causal                           ? -std::numeric_limits<double>::infinity()
                        : options.compute_type == at::kHalf ? -65504.0
                        : options.compute_type == at::kBFloat16
                            ? static_cast<double>(std::numeric_limits<c10::BFloat16>::lowest())
                            : static_cast<double>(std::numeric_limits<float>::lowest());
  return zeros.masked_fill(is_padding, lowest).unsqueeze(1).unsqueeze(1).to(options.device, options.compute_type);
}

/// V behind the text of `tensors`.
std::int64_t count_visual(const NamedTensors& tensors) {
  const auto* features = find(tensors, "vis_feats");
  return features == nullptr ? 0 : features->size(1);
}

/// Visual tokens are never padding.
at::Tensor with_visual(const at::Tensor& attention_bias, std::int64_t num_visual) {
  return attention_bias.defined() && num_visual > 0 ? at::constant_pad_nd(attention_bias, {0, num_visual})
                                                    : attention_bias;
}

/// Ids moved one place to the right behind the start token; -100 becomes padding.
at::Tensor shift_right(const at::Tensor& ids, std::int64_t start, std::int64_t pad) {
  auto shifted = at::empty_like(ids);
  shifted.select(1, 0).fill_(start);
  shifted.narrow(1, 1, ids.size(1) - 1).copy_(ids.narrow(1, 0, ids.size(1) - 1));
  return shifted.masked_fill(shifted.eq(-100), pad);
}

const RotarySpec* find_rotary(const Backbone& backbone) {
  for (const auto& layer : backbone.chain) {
    if (layer.block && layer.block->rotary) return &*layer.block->rotary;
  }
  return nullptr;
}

void add_rotary_angles(const RotarySpec& spec, const SliceOptions& options, StageInputs& inputs) {
  const auto* given = find(inputs.tensors, "position_ids");
  const auto positions =
      given != nullptr
          ? given->to(at::kFloat)
          : at::arange(inputs.num_prompts + inputs.tensors.at("input_ids").size(1), at::kFloat).unsqueeze(0);  // [1, T]
  const auto frequencies = at::tensor(spec.frequencies, at::kDouble).to(at::kFloat);
  const auto half = positions.cpu().unsqueeze(-1) * frequencies;  // [1 or B, T, W/2]
  const auto angles = at::cat({half, half}, -1).unsqueeze(1);     // [1 or B, 1, T, W]
  inputs.rotary_cos = (angles.cos() * spec.scale).to(options.device, options.compute_type);
  inputs.rotary_sin = (angles.sin() * spec.scale).to(options.device, options.compute_type);
}

/// Makes room for prompts in what stands beside the ids, which stay those of the words. Where the words go on, the
/// prompts are cached: the mask covers them all the same.
void add_prompts(std::int64_t count, bool goes_on, NamedTensors& tensors) {
  const auto in_front = [&](const std::string& name, double value) {
    if (const auto found = tensors.find(name); found != tensors.end()) {
      found->second = at::constant_pad_nd(found->second, {count, 0}, value);
    }
  };
  in_front("attention_mask", 1);
  if (!goes_on) in_front("token_type_ids", 0);
  if (const auto found = tensors.find("position_ids"); found != tensors.end()) {
    auto& positions = found->second;
    positions = positions + count;
    const auto first = at::arange(count, positions.options()).unsqueeze(0).expand({positions.size(0), count});
    if (!goes_on) positions = at::cat({first, positions}, 1);
  }
}

/// Length of the rows that run through the stack of `layer`.
std::int64_t tokens_of(const LayerPlan& layer, const BatchShape& shape) {
  return layer.stack == Stack::kDecoder ? shape.target_tokens : shape.tokens;
}

}  // namespace

std::set<std::string> input_names(const Backbone& backbone) {
  const auto& first = backbone.chain.front();
  if (first.patch_embedding) return {"pixel_values"};
  std::set<std::string> names = {"input_ids", "attention_mask"};
  if (first.embedding->num_token_types > 0) names.insert("token_type_ids");
  if (backbone.visual() != nullptr) names.insert(kVisualInputs.begin(), kVisualInputs.end());
  if (backbone.is_encoder_decoder()) {
    names.insert({"decoder_input_ids", "decoder_attention_mask"});
  } else if (find_rotary(backbone) != nullptr || first.embedding->positions == Positions::kInOrder) {
    names.insert("position_ids");
  }
  return names;
}

BatchShape batch_shape(const Backbone& backbone, const NamedTensors& tensors) {
  const auto& first = backbone.chain.front();
  if (first.patch_embedding) return {tensors.at("pixel_values").size(0), 1 + first.patch_embedding->num_patches(), 0};
  const auto& ids = tensors.at("input_ids");
  const auto* target = find(tensors, "decoder_input_ids");
  const auto num_visual = ids.size(1) == 0 ? 0 : count_visual(tensors);  // they are read with the text, once
  return {.rows = ids.size(0),
          .tokens = ids.size(1) + num_visual,
          .target_tokens = target == nullptr ? 0 : target->size(1),
          .visual_tokens = num_visual};
}

void complete_decoder_inputs(const Backbone& backbone, NamedTensors& tensors) {
  if (!backbone.is_encoder_decoder() || tensors.contains("decoder_input_ids")) return;
  const auto* labels = find(tensors, "labels");
  const auto* source = labels != nullptr && labels->dim() == 2 && backbone.head().is_language_model
                           ? labels
                           : find(tensors, "input_ids");
  if (source == nullptr || source->dim() != 2 || source->size(1) == 0) return;  // check_inputs says what is missing
  tensors["decoder_input_ids"] = shift_right(*source, backbone.decoder_start_token_id, backbone.pad_token_id);
}

CarryPlan plan_chain_carry(const Backbone& backbone, int first_layer, const BatchShape& shape,
                           at::ScalarType compute_type) {
  const auto& layer = backbone.layer(first_layer);
  const auto& below = backbone.layer(first_layer - 1);
  CarryPlan plan;
  const auto width = below.final && below.final->projected_width > 0 ? below.final->projected_width : backbone.width;
  plan.push_back({.name = "hidden", .sizes = {shape.rows, tokens_of(below, shape), width}, .dtype = compute_type});
  const bool is_block = layer.kind == LayerKind::kBlock;
  if (is_block && layer.stack == Stack::kDecoder && below.stack == Stack::kDecoder) {
    plan.push_back({.name = "memory", .sizes = {shape.rows, shape.tokens, backbone.width}, .dtype = compute_type});
  }
  if (is_block && layer.block->has_position_bias && !layer.block->relative_bias) {
    const auto tokens = tokens_of(layer, shape);
    const auto keys = tokens + (layer.block->is_causal ? shape.cached_tokens : 0);
    plan.push_back({.name = "position_bias", .sizes = {1, layer.block->num_heads, tokens, keys}, .dtype = at::kFloat});
  }
  return plan;
}

at::Tensor without_prompts(const at::Tensor& hidden, const LayerPlan& layer, const StageInputs& inputs) {
  const bool has_any = inputs.num_prompts > 0 && layer.stack != Stack::kDecoder;
  return has_any ? hidden.slice(1, inputs.num_prompts) : hidden;
}

StageInputs text_only(StageInputs inputs) {
  if (inputs.attention_bias.defined()) {
    inputs.attention_bias =
        inputs.attention_bias.slice(-1, 0, inputs.attention_bias.size(-1) - inputs.num_visual_tokens);
  }
  for (const auto* name : kVisualInputs) inputs.tensors.erase(name);
  inputs.num_visual_tokens = 0;
  return inputs;
}

BatchShape text_only(BatchShape shape) {
  shape.tokens -= shape.visual_tokens;
  shape.visual_tokens = 0;
  return shape;
}

StageInputs StageSlice::prepare(NamedTensors tensors, bool goes_on) const {
  check_inputs(backbone_, tensors, num_prompts_, goes_on);
  StageInputs inputs;
  if (num_prompts_ > 0) add_prompts(num_prompts_, goes_on, tensors);
  if (!goes_on) {
    inputs.num_prompts = num_prompts_;
    inputs.prompts = prompts_;
  }
  // With a causal stack a left-padded row begins with queries that see padding alone.
  const bool is_causal = backbone_.chain[1].block && backbone_.chain[1].block->is_causal;
  inputs.num_visual_tokens = count_visual(tensors);
  inputs.attention_bias =
      with_visual(attention_bias_of(find(tensors, "attention_mask"), is_causal, options_), inputs.num_visual_tokens);
  inputs.decoder_attention_bias = attention_bias_of(find(tensors, "decoder_attention_mask"), true, options_);
  inputs.tensors = std::move(tensors);
  if (const auto* rotary = find_rotary(backbone_)) add_rotary_angles(*rotary, options_, inputs);
  for (auto& [name, tensor] : inputs.tensors) tensor = tensor.to(options_.device);
  return inputs;
}

}  // namespace espalier::model
