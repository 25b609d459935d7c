// SPDX-License-Identifier: Apache-2.0
// What a rank's slice of a large sharded model costs to load: seconds beside the time that reading the same bytes from
// the page cache takes, and resident memory beside the bytes of the slice. Each stage loads in a process of its own.
//   slice_loading FOLDER [stages]     makes FOLDER (a random bf16 T5, 1.5 GB in 4 shards) if it is not there
#include <ATen/ATen.h>
#include <fcntl.h>
#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "common/durable_file.h"
#include "model/slice.h"

namespace {

namespace fs = std::filesystem;
using namespace espalier;  // NOLINT(google-build-using-namespace): one file, one program

constexpr int kShards = 4;
constexpr double kMebi = 1 << 20;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double resident_mebibytes() {
  std::ifstream statm("/proc/self/statm");
  long total = 0, resident = 0;
  statm >> total >> resident;
  return static_cast<double>(resident * sysconf(_SC_PAGESIZE)) / kMebi;
}

/// t5-large: 737,668,096 weights.
void make_model(const fs::path& folder) {
  fs::create_directories(folder);
  write_file_durably(folder / "config.json", nlohmann::json({{"model_type", "t5"},
                                                             {"d_model", 1024},
                                                             {"num_heads", 16},
                                                             {"d_kv", 64},
                                                             {"d_ff", 4096},
                                                             {"num_layers", 24},
                                                             {"vocab_size", 32128}})
                                                 .dump());
  const auto backbone = model::read_backbone(folder, {});
  std::vector<std::vector<std::pair<std::string, at::Tensor>>> shards(kShards);
  nlohmann::json places = nlohmann::json::object();
  model::visit_stored_tensors(backbone,
                              [&](const model::LayerPlan& layer, const model::StoredWeight& stored, const auto& shape) {
                                const auto shard = layer.index * kShards / backbone.chain.size();
                                shards[shard].emplace_back(stored.names.front(), at::randn(shape, at::kBFloat16));
                                places[stored.names.front()] = fmt::format("model-{}.safetensors", shard);
                              });
  for (int shard = 0; shard < kShards; ++shard) {
    model::write_safetensors(folder / fmt::format("model-{}.safetensors", shard), shards[shard], {{"format", "pt"}});
  }
  write_file_durably(folder / "model.safetensors.index.json", nlohmann::json({{"weight_map", places}}).dump());
}

/// Reads as many bytes of the shards as the slice has, as a loader without mapping would.
double read_seconds(const fs::path& folder, std::int64_t bytes) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<char> buffer(std::size_t{8} << 20);
  for (int shard = 0; shard < kShards && bytes > 0; ++shard) {
    const int file = open((folder / fmt::format("model-{}.safetensors", shard)).c_str(), O_RDONLY);
    for (auto count = read(file, buffer.data(), buffer.size()); count > 0 && bytes > 0;
         count = read(file, buffer.data(), buffer.size())) {
      bytes -= count;
    }
    close(file);
  }
  return seconds_since(start);
}

void load_stage(const fs::path& folder, int num_stages, int stage, at::ScalarType type) {
  const auto backbone = model::read_backbone(folder, {});
  const double before = resident_mebibytes();
  const auto start = std::chrono::steady_clock::now();
  const auto weights = model::open_model_folder(folder);
  const auto range = model::plan_stages(backbone, num_stages)[static_cast<std::size_t>(stage)];
  model::SliceOptions options;
  options.compute_type = type;
  model::StageSlice slice(backbone, range, *weights, options);
  const double loaded = seconds_since(start);
  // A first use of every weight, as a forward would.
  double sum = 0;
  slice.visit_weights([&](const std::string&, at::Tensor& slot, const auto&) { sum += slot.sum().item<double>(); });
  const double resident = resident_mebibytes();
  const auto bytes = slice.frozen_bytes();
  const auto stored = bytes / static_cast<std::int64_t>(c10::elementSize(type)) * 2;
  fmt::print("| {} | {} | {:.0f} | {:.0f} | {:.0f} | {:.2f} | {:.2f} |\n", stage, c10::toString(type),
             static_cast<double>(bytes) / kMebi, resident, resident - before, loaded, read_seconds(folder, stored));
  std::fprintf(stderr, "%s", sum == 0 ? " " : "");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "usage: slice_loading FOLDER [stages]\n");
    return 2;
  }
  const fs::path folder = argv[1];
  const int stages = argc > 2 ? std::atoi(argv[2]) : 4;
  if (argc > 4) {
    load_stage(folder, stages, std::atoi(argv[3]), std::string(argv[4]) == "fp32" ? at::kFloat : at::kBFloat16);
    return 0;
  }
  if (!fs::exists(folder / "config.json")) make_model(folder);
  read_seconds(folder, std::int64_t{1} << 40);  // into the page cache
  fmt::print("| stage | type | slice MiB | resident MiB | of it the slice | load s | read() of its bytes s |\n");
  fmt::print("|---|---|---|---|---|---|---|\n");
  std::fflush(stdout);
  for (const char* type : {"bf16", "fp32"}) {
    for (int stage = 0; stage < stages; ++stage) {
      const auto command = fmt::format("'{}' '{}' {} {} {}", argv[0], folder.string(), stages, stage, type);
      if (std::system(command.c_str()) != 0) return 1;
    }
  }
  return 0;
}
