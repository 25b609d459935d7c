// SPDX-License-Identifier: Apache-2.0
// Times of dropout and attention beside LibTorch's own: kernels_benchmark [--benchmark_filter=...]; threads from
// OMP_NUM_THREADS. The attention shapes are a MiniLM-sized layer (12 heads, 64 tokens, batch 32) at full width 32 and
// at the width 4 of a side network.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "model/attention.h"
#include "model/dropout.h"

namespace {

using espalier::model::AttentionOptions;

constexpr std::int64_t kDropoutElements = 786432;  // 32 x 64 x 384
constexpr std::uint64_t kKey = 12345;

void count_elements(benchmark::State& state, std::int64_t per_iteration) {
  state.counters["time/element"] =
      benchmark::Counter(static_cast<double>(state.iterations()) * static_cast<double>(per_iteration),
                         benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

void own_dropout(benchmark::State& state, at::ScalarType type) {
  const at::Tensor x = at::randn({kDropoutElements}).to(type);
  for (auto _ : state) {
    benchmark::DoNotOptimize(espalier::model::dropout(x, 0.1, kKey));
  }
  count_elements(state, kDropoutElements);
}

void own_dropout_add(benchmark::State& state, at::ScalarType type) {
  const at::Tensor x = at::randn({kDropoutElements}).to(type), residual = at::randn({kDropoutElements}).to(type);
  for (auto _ : state) {
    benchmark::DoNotOptimize(espalier::model::dropout_add(x, residual, 0.1, kKey));
  }
  count_elements(state, kDropoutElements);
}

void library_dropout(benchmark::State& state) {
  const at::Tensor x = at::randn({kDropoutElements});
  for (auto _ : state) {
    benchmark::DoNotOptimize(at::dropout(x, 0.1, /*train=*/true));
  }
  count_elements(state, kDropoutElements);
}

at::Tensor own_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias,
                         double scale, double dropout) {
  AttentionOptions options;
  options.scale = scale;
  options.dropout = dropout;
  options.dropout_key = kKey;
  return espalier::model::attention(q, k, v, bias, options);
}

at::Tensor library_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias,
                             double scale, double dropout) {
  return at::scaled_dot_product_attention(q, k, v, bias.expand({q.size(0), q.size(1), q.size(2), k.size(2)}), dropout,
                                          /*is_causal=*/false, scale);
}

using Attention = decltype(&own_attention);

// arguments: batch, tokens, head width, dropout in percent; 12 heads, a padding mask
void attention(benchmark::State& state, Attention function, at::ScalarType type, bool is_trained) {
  const std::int64_t batch = state.range(0), heads = 12, tokens = state.range(1), width = state.range(2);
  const double dropout = static_cast<double>(state.range(3)) / 100, scale = 1 / std::sqrt(static_cast<double>(width));
  const auto flat = [&] { return at::randn({batch, tokens, heads * width}).to(type).requires_grad_(is_trained); };
  const at::Tensor q = flat(), k = flat(), v = flat(), grad = at::randn({batch, tokens, heads * width}).to(type);
  at::Tensor bias = at::zeros({batch, 1, 1, tokens}, type);
  bias.slice(-1, tokens - 3).fill_(-std::numeric_limits<float>::infinity());
  const auto by_head = [&](const at::Tensor& t) { return t.view({batch, tokens, heads, width}).transpose(1, 2); };
  for (auto _ : state) {
    const at::Tensor out = function(by_head(q), by_head(k), by_head(v), bias, scale, dropout)
                               .transpose(1, 2)
                               .reshape({batch, tokens, heads * width});
    if (is_trained) {
      benchmark::DoNotOptimize(torch::autograd::grad({out}, {q, k, v}, {grad}));
    }
  }
}

void add_attention(const std::string& name, Attention function, at::ScalarType type) {
  for (const bool is_trained : {false, true}) {
    auto* added =
        benchmark::RegisterBenchmark((name + (is_trained ? "/forward+backward" : "/forward")).c_str(),
                                     [=](benchmark::State& state) { attention(state, function, type, is_trained); });
    added->ArgNames({"batch", "tokens", "width", "dropout%"})->Unit(benchmark::kMillisecond)->UseRealTime();
    for (const std::int64_t dropout : {0, 10}) {
      added->Args({32, 64, 32, dropout})->Args({32, 64, 4, dropout})->Args({4, 512, 64, dropout});
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  // as a training run does: denormals slow the backward of a softmax down several times
  at::globalContext().setFlushDenormal(true);
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    const std::string suffix = std::string("/") + at::toString(type);
    benchmark::RegisterBenchmark(("dropout" + suffix).c_str(), own_dropout, type)
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime();
    benchmark::RegisterBenchmark(("dropout_add" + suffix).c_str(), own_dropout_add, type)
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime();
  }
  benchmark::RegisterBenchmark("at_dropout/Float", library_dropout)->Unit(benchmark::kMillisecond)->UseRealTime();
  add_attention("attention/Float", own_attention, at::kFloat);
  add_attention("sdpa/Float", library_attention, at::kFloat);
  add_attention("attention/BFloat16", own_attention, at::kBFloat16);
  add_attention("sdpa/BFloat16", library_attention, at::kBFloat16);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
    return 2;
  }
  benchmark::AddCustomContext("intra-op threads", std::to_string(at::get_num_threads()));
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
