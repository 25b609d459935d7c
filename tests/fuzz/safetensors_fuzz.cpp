// SPDX-License-Identifier: Apache-2.0
// Mutates good safetensors files and indices and opens them. Whatever comes, only ConfigError may be thrown, the heap
// may not grow beyond a multiple of the file, and what is accepted must cover its data exactly. Case i is a function of
// (seed, i) alone: `safetensors_fuzz --seed S --only I` runs a reported case again.
#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "common/error.h"
#include "common/random.h"
#include "model/weights.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/model/counted_heap.h"
#include "tests/unit/model/weight_files.h"

namespace {

using espalier::PhiloxSequence;

constexpr std::int64_t kFixedBytes = 32 << 10;
constexpr std::int64_t kBytesPerByte = 16;  // small files: an entry may reserve a block for 40 bytes of text

constexpr std::array<std::string_view, 40> kTokens{"{",
                                                   "}",
                                                   "[",
                                                   "]",
                                                   ",",
                                                   ":",
                                                   "\"",
                                                   "\\",
                                                   "\\u0000",
                                                   "\\ud800",
                                                   "null",
                                                   "true",
                                                   "-1",
                                                   "0",
                                                   "1",
                                                   "4",
                                                   "8",
                                                   "1.5",
                                                   "1e999",
                                                   "9223372036854775807",
                                                   "9223372036854775808",
                                                   "18446744073709551615",
                                                   "18446744073709551616",
                                                   "4294967296",
                                                   "\"dtype\"",
                                                   "\"shape\"",
                                                   "\"data_offsets\"",
                                                   "\"__metadata__\"",
                                                   "\"F32\"",
                                                   "\"BOOL\"",
                                                   "\"F8_E5M2\"",
                                                   "\"weight_map\"",
                                                   "\"../x\"",
                                                   "\"/etc/passwd\"",
                                                   "\"a.safetensors\"",
                                                   "\"b.safetensors\"",
                                                   "\xff",
                                                   "\xc3\xa9",
                                                   " ",
                                                   "\n"};

std::size_t below(PhiloxSequence& random, std::size_t bound) {
  return static_cast<std::size_t>(random.next_below(bound));
}

/// A header with its ranges in order: a few tensors of any type, metadata now and then.
std::string good_header(PhiloxSequence& random, std::size_t& data_bytes) {
  constexpr std::array<std::pair<std::string_view, std::size_t>, 5> kTypes{
      {{"F32", 4}, {"BF16", 2}, {"I64", 8}, {"BOOL", 1}, {"U8", 1}}};
  std::string header = "{";
  if (below(random, 4) == 0) {
    header += R"("__metadata__":{"format":"pt","k":"v"},)";
  }
  data_bytes = 0;
  const std::size_t num_tensors = 1 + below(random, 5);
  for (std::size_t i = 0; i < num_tensors; ++i) {
    const auto& [type, type_bytes] = kTypes[below(random, kTypes.size())];
    const std::size_t rows = below(random, 4), columns = 1 + below(random, 3);
    const std::size_t end = data_bytes + rows * columns * type_bytes;
    header += i == 0 ? "" : ",";
    header += espalier::test::entry(fmt::format("t{}", i), type, fmt::format("[{},{}]", rows, columns),
                                    fmt::format("[{},{}]", data_bytes, end));
    data_bytes = end;
  }
  return header + "}";
}

void mutate(PhiloxSequence& random, std::string& text) {
  const std::size_t place = below(random, text.size() + 1);
  const std::size_t length = std::min(below(random, 12), text.size() - place);
  switch (random.next_below(7)) {
    case 0:
      if (place < text.size()) {
        text[place] = static_cast<char>(random.next_below(256));
      }
      break;
    case 1:
      text.erase(place, length);
      break;
    case 2:
      text.insert(place, kTokens[below(random, kTokens.size())]);
      break;
    case 3:
      text.insert(below(random, text.size() + 1), text.substr(place, length * 8));
      break;
    case 4:
      text.replace(place, length, kTokens[below(random, kTokens.size())]);
      break;
    case 5:
      text.resize(place);
      break;
    default: {
      // Numbers are where the checks are.
      const std::size_t digit = text.find_first_of("0123456789", place);
      if (digit != std::string::npos) {
        const std::size_t end = std::min(text.find_first_not_of("0123456789", digit), text.size());
        text.replace(digit, end - digit, std::to_string(random.next_below(random.next_below(2) == 0 ? 40 : ~0ULL)));
      }
    }
  }
}

std::string mutated_file(PhiloxSequence& random) {
  std::size_t data_bytes = 0;
  std::string header = good_header(random, data_bytes);
  for (std::size_t i = below(random, 4); i > 0; --i) {
    mutate(random, header);
  }
  std::string file = espalier::test::safetensors_bytes(header, std::string(data_bytes, '\1'));
  // Mostly the header's length stays true, or nothing behind it would be reached.
  if (below(random, 8) == 0) {
    mutate(random, file);
  }
  return file;
}

/// Throws: std::runtime_error where an accepted source contradicts itself.
void check_accepted(const espalier::model::WeightSource& source, std::size_t max_bytes) {
  std::size_t bytes = 0;
  const auto names = source.names();
  if (!std::is_sorted(names.begin(), names.end()) || std::adjacent_find(names.begin(), names.end()) != names.end()) {
    throw std::runtime_error("names are not sorted and distinct");
  }
  for (const std::string& name : names) {
    const at::Tensor tensor = source.get(name);
    if (tensor.sizes() != source.shape(name)) {
      throw std::runtime_error("shape differs from the tensor's");
    }
    bytes += tensor.nbytes();
  }
  if (bytes > max_bytes) {
    throw std::runtime_error(fmt::format("{} bytes of tensors out of a file of {}", bytes, max_bytes));
  }
  (void)source.digest();  // reads every byte
}

struct Counts {
  std::int64_t accepted = 0, refused = 0;
};

/// Throws: anything but ConfigError is a finding.
void run_case(const std::filesystem::path& folder, std::uint64_t seed, std::uint64_t number, Counts& counts) {
  const espalier::RandomKey key{.seed = seed, .step = number};
  PhiloxSequence random(espalier::derive_key(key, espalier::RandomDomain::kBackbone, 0, 0));
  std::size_t file_bytes = 0;
  const auto write = [&](const char* name, const std::string& bytes) {
    espalier::test::write_bytes(folder / name, bytes);
    file_bytes += bytes.size();
  };
  const bool is_sharded = below(random, 4) == 0;
  if (is_sharded) {
    const auto shard = [](std::string_view tensor) {
      return espalier::test::safetensors_bytes(
          fmt::format("{{{}}}", espalier::test::entry(tensor, "U8", "[0]", "[0,0]")), "");
    };
    write("a.safetensors", shard("t0"));
    write("b.safetensors", shard("t1"));
    std::string index = R"({"metadata":{"total_size":0},"weight_map":{"t0":"a.safetensors","t1":"b.safetensors"}})";
    for (std::size_t i = below(random, 4); i > 0; --i) {
      mutate(random, index);
    }
    write("model.safetensors.index.json", index);
  } else {
    write("one.safetensors", mutated_file(random));
  }
  const espalier::test::HeapPeak peak;
  try {
    const auto source = is_sharded ? espalier::model::open_model_folder(folder)
                                   : espalier::model::open_safetensors(folder / "one.safetensors");
    check_accepted(*source, file_bytes);
    ++counts.accepted;
  } catch (const espalier::ConfigError&) {
    ++counts.refused;
  }
  if (peak.bytes() > kFixedBytes + kBytesPerByte * static_cast<std::int64_t>(file_bytes)) {
    throw std::runtime_error(fmt::format("{} bytes allocated for a file of {}", peak.bytes(), file_bytes));
  }
}

}  // namespace

int main(int num_arguments, char** arguments) {
  double seconds = 3;
  std::uint64_t seed = 1;
  std::optional<std::uint64_t> only;
  for (int i = 1; i + 1 < num_arguments; i += 2) {
    const std::string_view option = arguments[i];
    if (option == "--seconds") {
      seconds = std::strtod(arguments[i + 1], nullptr);
    } else if (option == "--seed") {
      seed = std::strtoull(arguments[i + 1], nullptr, 10);
    } else if (option == "--only") {
      only = std::strtoull(arguments[i + 1], nullptr, 10);
    } else {
      fmt::print(stderr, "usage: safetensors_fuzz [--seconds N] [--seed N] [--only CASE]\n");
      return 2;
    }
  }
  // In memory where possible: the disk would take most of the time.
  if (std::filesystem::is_directory("/dev/shm")) {
    ::setenv("TMPDIR", "/dev/shm", /*overwrite=*/0);
  }
  const espalier::TemporaryFolder folder;
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  Counts counts;
  std::uint64_t number = only.value_or(0);
  try {
    do {
      run_case(folder.path(), seed, number, counts);
      ++number;
    } while (!only && std::chrono::steady_clock::now() < end);
  } catch (const std::exception& error) {
    fmt::print(stderr, "case {} of seed {}: {}\n", number, seed, error.what());
    return 1;
  }
  fmt::print("{} files accepted, {} refused\n", counts.accepted, counts.refused);
  // A fuzzer whose every file fails, or passes, at the first check tests nothing.
  const bool is_mixed = counts.accepted > 0 && counts.refused > 0;
  return only || is_mixed ? 0 : 1;
}
