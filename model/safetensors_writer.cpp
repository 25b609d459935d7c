// SPDX-License-Identifier: Apache-2.0
// Writes the format that safetensors.cpp reads: exports, adapters, test models.
#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <cerrno>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>

#include "common/check.h"
#include "common/error.h"
#include "model/stored_type.h"
#include "model/weights.h"

namespace espalier::model {
namespace {

using Tensors = std::vector<std::pair<std::string, at::Tensor>>;
using Metadata = std::vector<std::pair<std::string, std::string>>;

std::string make_header(const Tensors& tensors, const Metadata& metadata) {
  std::set<std::string> names{"__metadata__"};
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) {
    auto& texts = header["__metadata__"] = nlohmann::ordered_json::object();
    for (const auto& [key, text] : metadata) {
      ESPALIER_CHECK(!texts.contains(key), "metadata key {} twice", key);
      texts[key] = text;
    }
  }
  std::string text = header.dump();
  text.pop_back();
  std::int64_t begin = 0;
  for (const auto& [name, tensor] : tensors) {
    ESPALIER_CHECK(names.insert(name).second, "tensor name {} twice or reserved", name);
    ESPALIER_CHECK(tensor.defined() && tensor.layout() == at::kStrided, "tensor {} is undefined or sparse", name);
    const std::string_view type = stored_name_of_type(tensor.scalar_type());
    ESPALIER_CHECK(!type.empty(), "tensor {} is of type {}; safetensors files hold {}", name,
                   c10::toString(tensor.scalar_type()), stored_type_names());
    const auto end = begin + static_cast<std::int64_t>(tensor.nbytes());
    text += fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}", text.size() > 1 ? "," : "",
                        nlohmann::json(name).dump(), type, fmt::join(tensor.sizes(), ","), begin, end);
    begin = end;
  }
  text += '}';
  // Data that starts at a multiple of 8 can be used where it is mapped.
  text.append((8 - text.size() % 8) % 8, ' ');
  return text;
}

class OutputFile {
 public:
  explicit OutputFile(const std::filesystem::path& path) : path_(path), file_(std::fopen(path.c_str(), "wbe")) {
    if (file_ == nullptr) {
      fail("cannot be created");
    }
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile() {
    if (file_ != nullptr) {
      std::fclose(file_);
    }
  }

  void write(const void* data, std::size_t bytes) {
    if (bytes > 0 && std::fwrite(data, 1, bytes, file_) != bytes) {
      fail("writing failed");
    }
  }

  void close() {
    if (std::fclose(std::exchange(file_, nullptr)) != 0) {
      fail("writing failed");
    }
  }

 private:
  [[noreturn]] void fail(std::string_view what) const {
    throw IoError(fmt::format("{}: {}: {}", path_.string(), what, std::generic_category().message(errno)));
  }

  const std::filesystem::path& path_;
  std::FILE* file_;
};

}  // namespace

void write_safetensors(const std::filesystem::path& file, const Tensors& tensors, const Metadata& metadata) {
  const std::string header = make_header(tensors, metadata);
  const std::uint64_t length = header.size();
  OutputFile output(file);
  output.write(&length, sizeof length);
  output.write(header.data(), header.size());
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor stored = tensor.detach().cpu().contiguous();
    output.write(stored.const_data_ptr(), stored.nbytes());
  }
  output.close();
}

}  // namespace espalier::model
