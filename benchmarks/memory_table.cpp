// SPDX-License-Identifier: Apache-2.0
// What one training step of each method holds in memory, in exact allocated bytes, at the true shapes of published
// models with random weights: one forward, backward and update of one micro-batch on one stage, dropout as the models
// train with it, each row in a process of its own.
//   memory_table [MODEL ...] [limit=GB] [from=A,B] [method=NAME ...] [products=no] [check=yes] [kept=yes]
// Without models: all. A row that would need more than the limit is measured at smaller batches (a frozen part that
// alone is too large: at fewer layers too), from which the whole follows: bytes are affine in both. from=A,B measures
// every row at two small batches alone, which takes seconds. check=yes computes what is measured too. kept=yes lists
// the blocks that a forward leaves, by size.
#include <c10/core/Allocator.h>
#include <c10/util/accumulate.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "common/counting_allocator.h"
#include "memory_step.h"

namespace {

using namespace espalier;              // NOLINT(google-build-using-namespace): one program
using namespace espalier::benchmarks;  // NOLINT(google-build-using-namespace)
using nlohmann::json;

constexpr double kGiga = 1e9;

/// What stands in memory before any activation: weights, and for what trains gradient and moments.
double count_fixed_bytes(const Row& row, const Shape& shape) {
  const auto backbone = plan(shape, /*keeps_scores=*/false);
  std::int64_t numel = 0;
  model::visit_stored_tensors(backbone, [&](const auto& /*layer*/, const auto& /*stored*/, const auto& sizes) {
    numel += c10::multiply_integers(sizes);
  });
  return 4.0 * static_cast<double>(numel) +
         12.0 * static_cast<double>(peft::count_trained(row.config, backbone).method);
}

/// The line through two measurements, at `to`; `of` names what they are affine in.
Bytes extrapolate(const Bytes& a, const Bytes& b, std::int64_t Bytes::*of, std::int64_t to) {
  const double share = static_cast<double>(to - a.*of) / static_cast<double>(b.*of - a.*of);
  Bytes result = b;
  result.*of = to;
  const auto line = [&](auto from, auto until) { return from + share * (until - from); };
  for (double Bytes::*column :
       {&Bytes::weights, &Bytes::gradients, &Bytes::optimizer, &Bytes::activations, &Bytes::peak}) {
    result.*column = line(a.*column, b.*column);
  }
  result.trained = std::llround(line(static_cast<double>(a.trained), static_cast<double>(b.trained)));
  return result;
}

struct Result {
  Bytes whole;                    ///< at the table's batch
  std::vector<Bytes> measured;    ///< where it was measured; the whole itself, or what it follows from
  std::optional<Bytes> computed;  ///< asked for beside a whole that was measured
};

struct Request {
  double limit_bytes = 20 * kGiga;
  std::vector<std::int64_t> from;    ///< the two batches to compute from; empty: as the limit allows
  std::vector<std::string> methods;  ///< empty: all
  bool is_checked = false;
  std::string flags = "none";  ///< of a measurement: words of "kept", "skip"
};

class Table {
 public:
  Table(std::string program, std::string model, Shape shape, Request request)
      : program_(std::move(program)),
        model_(std::move(model)),
        shape_(std::move(shape)),
        request_(std::move(request)) {}

  void print();

 private:
  /// Steps of these batches, in a process of their own. Throws: std::runtime_error when it does not end well.
  std::vector<Bytes> run(const Row& row, const std::vector<std::int64_t>& batches, std::int64_t layers) const;
  Result find(const Row& row) const;
  void print_row(const std::string& name, const Bytes& bytes, const std::string& how) const;

  std::string program_, model_;
  Shape shape_;
  Request request_;
  std::map<std::string, Bytes> wholes_;
};

std::vector<Bytes> Table::run(const Row& row, const std::vector<std::int64_t>& batches, std::int64_t layers) const {
  const auto command = fmt::format("'{}' measure {} {} {} {} '{}'", program_, model_, fmt::join(batches, ","), layers,
                                   request_.flags, row.name);
  std::FILE* pipe = ::popen(command.c_str(), "r");
  std::string output;
  std::array<char, 4096> buffer{};
  while (pipe != nullptr && std::fgets(buffer.data(), buffer.size(), pipe) != nullptr) output += buffer.data();
  if (pipe == nullptr || ::pclose(pipe) != 0) throw std::runtime_error(command);
  return json::parse(output).get<std::vector<Bytes>>();
}

Result Table::find(const Row& row) const {
  Shape shape = shape_;
  std::int64_t& layers = num_layers(shape.config);
  const std::int64_t all_layers = layers;
  while (layers > 4 && count_fixed_bytes(row, shape) > 0.7 * request_.limit_bytes) layers /= 2;
  std::vector<std::int64_t> batches = request_.from;
  if (batches.empty()) {
    const auto probes = run(row, {1, 3}, layers);
    // Where a method recomputes, the peak grows with the batch and the activations do not.
    const double slope = std::max(probes[1].activations - probes[0].activations, probes[1].peak - probes[0].peak) / 2;
    std::int64_t rows = shape_.rows;
    while (rows > 2 && probes[0].peak + 1.1 * slope * static_cast<double>(rows) > request_.limit_bytes) {
      rows = (rows + 1) / 2;
    }
    if (rows < shape_.rows || layers < all_layers) {
      batches = {rows / 2, rows};
    } else if (request_.is_checked) {
      batches = {rows / 4, rows / 2, rows};
    } else {
      batches = {rows};
    }
  }

  Result result;
  const auto at_depth = [&](std::int64_t depth) {
    const auto found = run(row, batches, depth);
    result.measured.insert(result.measured.end(), found.begin(), found.end());
    return found.size() == 1 ? found[0] : extrapolate(found[0], found[1], &Bytes::rows, shape_.rows);
  };
  result.whole = at_depth(layers);
  if (layers < all_layers) {
    const Bytes shallow = at_depth(layers / 2);
    result.whole = extrapolate(shallow, result.whole, &Bytes::layers, all_layers);
  }
  if (batches.size() == 3) {
    result.computed = std::exchange(result.whole, result.measured.back());
    result.measured = {result.whole};
  }
  return result;
}

void Table::print() {
  const auto backbone = plan(shape_, /*keeps_scores=*/false);
  const auto block = std::find_if(backbone.chain.begin(), backbone.chain.end(), [](const auto& l) { return l.block; });
  fmt::print(
      "## {}, batch {} x {} tokens, dropout {:g}, in attention {:g}\n\nMiB; the last four columns are ratios to the "
      "row "
      "of full fine-tuning, and of LoRA, whose attention is the same.\n\n",
      model_, shape_.rows, shape_.tokens, block->block->hidden_dropout, block->block->attention_dropout);
  fmt::print(
      "| method | batch | trained | weights | gradients | optimizer | activations | peak | peak - weights - optimizer "
      "| "
      "peak / full | activations / full | peak - w. - o. / full | peak / LoRA |\n"
      "|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
  std::fflush(stdout);
  for (const Row& row : rows_of(model_)) {
    const auto& wanted = request_.methods;
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), row.name) == wanted.end()) continue;
    try {
      const Result result = find(row);
      wholes_.emplace(row.name, result.whole);
      const bool is_measured = result.measured.size() == 1;
      for (const Bytes& point : result.measured) {
        if (is_measured || !request_.from.empty()) break;
        print_row(row.name, point,
                  point.layers == result.whole.layers ? fmt::format("{}", point.rows)
                                                      : fmt::format("{}, {} layers", point.rows, point.layers));
      }
      print_row(row.name, result.whole, fmt::format("{}{}", shape_.rows, is_measured ? "" : ", computed"));
      if (result.computed) {
        print_row(row.name, *result.computed,
                  fmt::format("{}, computed from {} and {}", shape_.rows, shape_.rows / 4, shape_.rows / 2));
      }
    } catch (const std::runtime_error& error) {
      fmt::print("| {} | {} | failed | | | | | | | | | | |\n", row.name, shape_.rows);
      fmt::print(stderr, "{}: {}\n", row.name, error.what());
      std::fflush(stdout);
    }
  }
  fmt::print("\n");
}

void Table::print_row(const std::string& name, const Bytes& bytes, const std::string& how) const {
  const auto mebi = [](double value) { return fmt::format("{:.1f}", value / kMebi); };
  const auto ratio = [&](const char* other, auto column) {
    const auto found = wholes_.find(other + (name.ends_with(kScoresKept) ? kScoresKept : ""));
    const bool is_whole = bytes.rows == shape_.rows && found != wholes_.end() && bytes.layers == found->second.layers;
    return is_whole ? fmt::format("{:.3f}", column(bytes) / column(found->second)) : std::string();
  };
  const auto peak = [](const Bytes& of) { return of.known_peak(); };
  const char* bound = bytes.peak < bytes.least_peak() ? ">= " : "";
  fmt::print("| {} | {} | {} | {} | {} | {} | {} | {}{} | {}{} | {} | {} | {} | {} |\n", name, how, bytes.trained,
             mebi(bytes.weights), mebi(bytes.gradients), mebi(bytes.optimizer), mebi(bytes.activations), bound,
             mebi(bytes.known_peak()), bound, mebi(bytes.above_held()), ratio("full", peak),
             ratio("full", [](const Bytes& of) { return of.activations; }),
             ratio("full", [](const Bytes& of) { return of.above_held(); }), ratio("lora", peak));
  std::fflush(stdout);
}

std::vector<std::int64_t> numbers_of(const std::string& text) {
  return json::parse("[" + text + "]").get<std::vector<std::int64_t>>();
}

/// `arguments`: MODEL batches layers flags ROW, as Table::run gives them.
int measure_alone(const std::vector<std::string>& arguments, const std::map<std::string, Shape>& all) {
  const std::string& model = arguments.at(0);
  Shape shape = all.at(model);
  num_layers(shape.config) = std::stoll(arguments.at(2));
  BlockSizes* sizes = nullptr;
  const std::string& flags = arguments.at(3);
  const auto skipped = flags.find("skip") != std::string::npos ? skip_products() : nullptr;
  if (flags.find("kept") != std::string::npos) {
    sizes = new BlockSizes(*c10::GetAllocator(c10::DeviceType::CPU));  // never destroyed: tensors may outlive it
    c10::SetAllocator(c10::DeviceType::CPU, sizes, /*priority=*/2);
  }
  for (const Row& row : rows_of(model)) {
    if (row.name != arguments.at(4)) continue;
    Trainee trainee(row, shape, /*has_products=*/skipped == nullptr);
    std::vector<Bytes> found;
    for (const std::int64_t rows : numbers_of(arguments.at(1))) found.push_back(trainee.measure(rows, sizes));
    fmt::print("{}\n", json(found).dump());
    return 0;
  }
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  install_counting_allocator();
  const auto ordered = shapes();
  const std::map<std::string, Shape> all(ordered.begin(), ordered.end());
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (!words.empty() && words.front() == "measure") return measure_alone({words.begin() + 1, words.end()}, all);

  std::vector<std::string> models;
  Request request;
  for (const std::string& word : words) {
    const std::size_t place = word.find('=');
    const std::string key = word.substr(0, place);
    const std::string value = place == std::string::npos ? "" : word.substr(place + 1);
    if (all.contains(word)) {
      models.push_back(word);
    } else if (key == "limit") {
      request.limit_bytes = std::stod(value) * kGiga;
    } else if (key == "from" && numbers_of(value).size() == 2) {
      request.from = numbers_of(value);
    } else if (key == "method") {
      request.methods.push_back(value);
    } else if (word == "check=yes") {
      request.is_checked = true;
    } else if (word == "kept=yes") {
      request.flags += ",kept";
    } else if (word == "products=no") {
      request.flags += ",skip";
    } else {
      fmt::print(stderr,
                 "memory_table: expected [MODEL ...] [limit=GB] [from=A,B] [method=NAME ...] [products=no] [check=yes] "
                 "[kept=yes], found '{}'; models:",
                 word);
      for (const auto& [name, shape] : ordered) fmt::print(stderr, " {}", name);
      fmt::print(stderr, "\n");
      return 2;
    }
  }
  for (const auto& [name, shape] : ordered) {
    if (!models.empty() && std::find(models.begin(), models.end(), name) == models.end()) continue;
    Table(argv[0], name, shape, request).print();
  }
  return 0;
}
