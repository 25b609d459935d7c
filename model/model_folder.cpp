// SPDX-License-Identifier: Apache-2.0
// A Hugging Face folder: model.safetensors, or model.safetensors.index.json, whose weight_map names the shard of every
// tensor. The map and the shards must agree exactly: a tensor that one has and the other lacks would silently be
// another model.
#include <spdlog/fmt/fmt.h>

#include <map>

#include "common/check.h"
#include "common/error.h"
#include "model/mapped_file.h"
#include "model/strict_json.h"
#include "model/weights.h"

namespace espalier::model {
namespace {

constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";
constexpr std::size_t kMaxIndexBytes = 100'000'000;  // as for the header of a safetensors file
constexpr int kMaxSkippedDepth = 32;

/// {"weight_map": {tensor: shard, ...}, anything else is skipped}
class IndexForm : public StrictJson {
 public:
  explicit IndexForm(const std::filesystem::path& file) : file_(file) {}

  [[nodiscard]] bool has_map() const { return has_map_; }
  std::map<std::string, std::string> take_map() { return std::move(shard_of_); }

  bool start_object(std::size_t /*num_elements*/) override {
    if (place_ == Place::kStart) {
      place_ = Place::kRoot;
    } else if (place_ == Place::kRoot && key_ == "weight_map") {
      place_ = Place::kMap;
    } else {
      descend("an object");
    }
    return true;
  }

  bool key(string_t& name) override {
    if (place_ == Place::kSkipped) {
      return true;
    }
    key_ = name;
    if (place_ == Place::kRoot && name == "weight_map" && std::exchange(has_map_, true)) {
      unexpected("the key twice");
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kMap) {
      place_ = Place::kRoot;
      key_.clear();
    } else if (place_ == Place::kSkipped) {
      ascend();
    }
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == Place::kMap) {
      if (!shard_of_.emplace(key_, value).second) {
        unexpected("the key twice");
      }
      return true;
    }
    return skip_value("the text " + shown(value));
  }

  bool start_array(std::size_t /*num_elements*/) override {
    descend("a list");
    return true;
  }
  bool end_array() override {
    ascend();
    return true;
  }
  bool null() override { return skip_value("null"); }
  bool boolean(bool /*value*/) override { return skip_value("a boolean"); }
  bool number_integer(number_integer_t value) override { return skip_value(std::to_string(value)); }
  bool number_unsigned(number_unsigned_t value) override { return skip_value(std::to_string(value)); }
  bool number_float(number_float_t /*value*/, const string_t& text) override { return skip_value(shown(text)); }

 private:
  enum class Place { kStart, kRoot, kMap, kSkipped };

  [[nodiscard]] ConfigError refusal(std::string_view found) const override {
    const std::string_view expected = place_ == Place::kStart ? "a JSON object"
                                      : place_ == Place::kMap ? "the file name of a shard, once per tensor"
                                                              : "a weight_map {tensor: shard} in plain JSON";
    return ConfigError(fmt::format("{}: {}: expected {}, found {}; fetch the model folder again", file_.string(),
                                   key_.empty() ? "index" : shown(key_), expected, found));
  }

  bool skip_value(std::string_view found) const {
    if (place_ == Place::kMap || (place_ == Place::kRoot && key_ == "weight_map")) {
      unexpected(found);
    }
    return true;
  }

  void descend(std::string_view found) {
    skip_value(found);
    if (++depth_ > kMaxSkippedDepth) {
      unexpected(fmt::format("values nested deeper than {}", kMaxSkippedDepth));
    }
    place_ = Place::kSkipped;
  }

  void ascend() {
    if (--depth_ == 0) {
      place_ = Place::kRoot;
    }
  }

  const std::filesystem::path& file_;
  Place place_ = Place::kStart;
  int depth_ = 0;
  bool has_map_ = false;
  std::string key_;
  std::map<std::string, std::string> shard_of_;
};

std::map<std::string, std::string> read_weight_map(const std::filesystem::path& index) {
  const MappedFile mapped(index);
  if (mapped.bytes().size() > kMaxIndexBytes) {
    throw ConfigError(fmt::format("{}: expected at most {} bytes, found {}; fetch the model folder again",
                                  index.string(), kMaxIndexBytes, mapped.bytes().size()));
  }
  IndexForm form(index);
  read_strictly(mapped.bytes(), form);
  if (!form.has_map()) {
    throw ConfigError(
        fmt::format("{}: expected the key \"weight_map\", found none; fetch the model folder again", index.string()));
  }
  return form.take_map();
}

/// Only the name is judged: in the Hugging Face cache a shard is a symbolic link to somewhere else.
void check_shard_name(const std::filesystem::path& index, const std::string& tensor, const std::string& shard) {
  const std::filesystem::path path(shard);
  const bool is_plain = !shard.empty() && shard.find('\0') == std::string::npos && path.is_relative() &&
                        path.lexically_normal() == path && *path.begin() != ".." && path.has_filename() && shard != ".";
  if (!is_plain) {
    throw ConfigError(
        fmt::format("{}: tensor {}: expected the plain name of a file in this folder, found {}; "
                    "the index is damaged or hostile: fetch the model folder from its source again",
                    index.string(), shown(tensor), shown(shard)));
  }
}

class ShardedWeights : public WeightSource {
 public:
  explicit ShardedWeights(const std::filesystem::path& index) {
    const auto shard_of = read_weight_map(index);
    for (const auto& [tensor, shard] : shard_of) {
      if (!shards_.contains(shard)) {
        check_shard_name(index, tensor, shard);
        const std::filesystem::path file = index.parent_path() / shard;
        if (!std::filesystem::exists(file)) {
          throw ConfigError(
              fmt::format("{}: tensor {}: expected its shard {}, found no such file; fetch the missing shard",
                          index.string(), shown(tensor), file.string()));
        }
        shards_.emplace(shard, open_safetensors(file));
      }
      const WeightSource& source = *shards_.at(shard);
      if (!source.contains(tensor)) {
        throw ConfigError(
            fmt::format("{}: tensor {}: expected it in {}, found it missing there; index and shards are of "
                        "different models: fetch the model folder again",
                        index.string(), shown(tensor), shown(shard)));
      }
      source_of_.emplace(tensor, &source);
    }
    for (const auto& [shard, source] : shards_) {
      for (const std::string& tensor : source->names()) {
        const auto mapped = shard_of.find(tensor);
        if (mapped == shard_of.end() || mapped->second != shard) {
          throw ConfigError(fmt::format(
              "{}: tensor {}: expected {}, found it in {}; index and shards are of different models: fetch the model "
              "folder again",
              index.string(), shown(tensor),
              mapped == shard_of.end() ? "no such tensor" : "it only in " + shown(mapped->second), shown(shard)));
        }
      }
    }
  }

  [[nodiscard]] bool contains(const std::string& name) const override { return source_of_.contains(name); }
  [[nodiscard]] std::vector<std::int64_t> shape(const std::string& name) const override {
    return source(name).shape(name);
  }
  [[nodiscard]] at::Tensor get(const std::string& name) const override { return source(name).get(name); }
  void drop_pages(const std::string& name) const override { source(name).drop_pages(name); }

  [[nodiscard]] std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const auto& [name, source] : source_of_) {
      names.push_back(name);
    }
    return names;
  }

 private:
  [[nodiscard]] const WeightSource& source(const std::string& name) const {
    const auto found = source_of_.find(name);
    ESPALIER_CHECK(found != source_of_.end(), "no shard has the tensor {}", shown(name));
    return *found->second;
  }

  std::map<std::string, std::unique_ptr<WeightSource>> shards_;
  std::map<std::string, const WeightSource*> source_of_;
};

}  // namespace

std::unique_ptr<WeightSource> open_model_folder(const std::filesystem::path& folder) {
  namespace fs = std::filesystem;
  if (!fs::is_directory(folder)) {
    throw ConfigError(fmt::format("{}: expected a model folder, found {}; point model.path at a Hugging Face folder",
                                  folder.string(), fs::exists(folder) ? "a file" : "nothing"));
  }
  if (fs::exists(folder / kSingleFile)) {
    return open_safetensors(folder / kSingleFile);
  }
  if (fs::exists(folder / kIndexFile)) {
    return std::make_unique<ShardedWeights>(folder / kIndexFile);
  }
  if (fs::exists(folder / "pytorch_model.bin")) {
    throw ConfigError(fmt::format(
        "{}: expected {}, found pytorch_model.bin only, which is not read because it may hold code; convert it "
        "inside the folder with: python -c \"import torch, safetensors.torch as s; "
        "w = torch.load('pytorch_model.bin', weights_only=True); first = {{}}; "
        "[first.setdefault((v.data_ptr() or k, v.shape), k) for k, v in w.items()]; "
        "s.save_file({{k: w[k].contiguous().clone() for k in first.values()}}, 'model.safetensors', "
        "{{'format': 'pt'}})\" (of tied weights it stores the first alone)",
        folder.string(), kSingleFile));
  }
  throw ConfigError(fmt::format("{}: expected {} or {}, found neither; fetch the weights of the model into this folder",
                                folder.string(), kSingleFile, kIndexFile));
}

}  // namespace espalier::model
