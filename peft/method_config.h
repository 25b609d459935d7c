// SPDX-License-Identifier: Apache-2.0
// The options of every method, keys "peft.method" and "peft.<method>.*": values only. What an option means and which
// values it takes stands with its method, in describe().
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace espalier::peft {

struct LstConfig {
  std::int64_t reduction = 8;                     ///< divides all widths
  std::vector<std::int64_t> layers = {};          ///< kept side layers of the only stack or the encoder; empty: all
  std::vector<std::int64_t> decoder_layers = {};  ///< the same of the decoder
  std::string gate = "learned";                   ///< learned | one | none
  double gate_temperature = 0.1;                  ///< divides what the gate's sigmoid reads
  std::string fuse = "before";                    ///< before | after the side block
  std::string side_initial = "magnitude";         ///< fisher | magnitude | random
  std::int64_t fisher_rows = 1024;                ///< training rows that fisher measures on
  bool prune_by_head = false;
  bool ladder_bias = true;
  bool merge_last = false;    ///< the head reads the backbone's last state too, through a gate
  double distill_weight = 0;  ///< of the divergence from the backbone's own predictions
  bool backbone_dropout = true;
  std::string position_bias = "own";  ///< own | backbone
};

struct LastConfig {
  std::int64_t rank = 8;        ///< width at which a module attends
  std::int64_t group_size = 1;  ///< blocks of a group
  std::int64_t modules_per_group = 2;
  std::int64_t heads = 1;  ///< of a module
  bool norm_affine = true;
  bool up_bias = false;
  bool qkv_bias = false;
  bool correction = true;   ///< the head reads the backbone's last state and the updates alone
  double up_deviation = 0;  ///< 0: starts at the frozen backbone
};

struct LoraConfig {
  std::int64_t rank = 8;
  double alpha = 16;                                                          ///< scale alpha / rank
  double dropout = 0;                                                         ///< on what the factors read
  bool rank_stabilized = false;                                               ///< scale alpha / sqrt(rank)
  std::vector<std::string> targets = {"attention.query", "attention.value"};  ///< roles of linears, or linears
  std::string biases = "none";                                                ///< none | targets | all: which train too
  std::string initial = "kaiming";                                            ///< kaiming | zero_a
};

struct RosaConfig {
  double rank = 8;  ///< an integer, or a share of the smaller width
  std::vector<std::string> targets = {"attention.query", "attention.key", "attention.value", "attention.output"};
  std::string sampling = "window";       ///< window | uniform | top | bottom
  std::string sigma = "a";               ///< a: on A | both: its root on A and on B
  std::string split = "subspace";        ///< subspace | add | random_add
  std::string trained_factors = "both";  ///< both | a | b
  bool factors_decay = true;             ///< weight decay acts on the factors
  std::string biases = "none";           ///< as of LoRA
  std::int64_t every_epochs = 1;         ///< 0: the first event only
  std::int64_t every_steps = 0;          ///< in place of every_epochs
  bool head_trained = true;
  std::string svd_type = "fp32";      ///< fp32 | fp64
  std::string svd_device = "device";  ///< device | cpu
};

struct AdapterConfig {
  std::string placement = "houlsby";  ///< houlsby | parallel
  bool cross_attention = false;       ///< behind the cross-attention of decoder blocks too
  std::int64_t rank = 48;             ///< width of the bottleneck
  std::string activation = "model";   ///< the backbone's, or a name
  double dropout = 0;                 ///< behind the activation
  double scale = 1;                   ///< of what a parallel bottleneck adds
  bool norms_trained = false;         ///< those of the blocks
};

struct MeftConfig {
  std::int64_t variant = 1;             ///< MEFT1, 2 or 3
  std::int64_t rank = 0;                ///< 0: 64 for decoder-only models, else 8
  double lambda = 0, beta = 0;          ///< 0: the variant's own
  std::int64_t reversible_layers = -1;  ///< -1: all above frozen_bottom
  std::int64_t frozen_bottom = 0;       ///< lowest blocks, plain and frozen
  std::int64_t cached_top = 0;          ///< highest blocks that keep their graph; says the same as reversible_layers
  std::string merge = "auto";           ///< auto | mean | sum | concat
  bool norm_in_adapter = false;
  std::string inversion = "exact";  ///< exact | float | anchored
  std::int64_t anchor_layers = 4;   ///< blocks between two kept states of the anchored inversion
  std::int64_t fraction_bits = 20;  ///< behind the point of the exact inversion's streams
  double error_limit = 1e-3;        ///< of the float inversion
  std::string factors = "none";     ///< none | lora | rosa, inside F and G
  bool pooler_trained = false;      ///< BERT's
};

struct PromptConfig {
  std::int64_t tokens = 20;                    ///< prompts of a row
  std::string initial = "words";               ///< words | normal | ids
  std::vector<std::int64_t> initial_ids = {};  ///< words that the prompts start from, over and over
};

struct MethodConfig {
  std::string method = "lst";
  std::int64_t seed = -1;  ///< of what trains; -1: the run's
  LstConfig lst = {};
  LastConfig last = {};
  LoraConfig lora = {};
  RosaConfig rosa = {};
  AdapterConfig adapter = {};
  MeftConfig meft = {};
  PromptConfig prompt = {};
};

}  // namespace espalier::peft
