// SPDX-License-Identifier: Apache-2.0
#include "model/weights.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <cstring>
#include <map>

#include "common/check.h"
#include "common/digest.h"
#include "model/initial.h"

namespace espalier::model {
namespace {

class RandomWeights : public WeightSource {
 public:
  RandomWeights(const std::vector<std::pair<std::string, std::vector<std::int64_t>>>& shapes, double deviation,
                std::uint64_t seed, at::ScalarType type)
      : deviation_(deviation), seed_(seed), type_(type) {
    for (const auto& [name, shape] : shapes) {
      ESPALIER_CHECK(shapes_.emplace(name, shape).second, "tensor name {} twice", name);
    }
  }

  [[nodiscard]] bool contains(const std::string& name) const override { return shapes_.contains(name); }
  [[nodiscard]] std::vector<std::int64_t> shape(const std::string& name) const override {
    const auto found = shapes_.find(name);
    ESPALIER_CHECK(found != shapes_.end(), "no random tensor {}", name);
    return found->second;
  }
  [[nodiscard]] at::Tensor get(const std::string& name) const override {
    const std::vector<std::int64_t> sizes = shape(name);
    at::Tensor drawn = normal_by_name(sizes, deviation_, seed_, name);
    const bool is_norm = sizes.size() == 1 && name.ends_with(".weight");
    return (is_norm ? drawn.add_(1) : drawn).to(type_);
  }
  /// What the numbers are made from tells them apart as well as the numbers.
  [[nodiscard]] std::string digest() const override {
    Digest digest;
    digest.update(fmt::format("random {} {} {}\n", seed_, deviation_, c10::toString(type_)));
    for (const auto& [name, shape] : shapes_) {
      digest.update(fmt::format("{} [{}]\n", name, fmt::join(shape, ", ")));
    }
    return digest.hex();
  }
  [[nodiscard]] std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const auto& [name, shape] : shapes_) {
      names.push_back(name);
    }
    return names;
  }

 private:
  std::map<std::string, std::vector<std::int64_t>> shapes_;
  double deviation_;
  std::uint64_t seed_;
  at::ScalarType type_;
};

}  // namespace

std::string WeightSource::digest() const {
  const std::lock_guard lock(digest_mutex_);
  if (digest_.empty()) {
    Digest digest;
    for (const std::string& name : names()) {
      const at::Tensor tensor = get(name).contiguous();
      digest.update(fmt::format("{}:{} {} [{}]\n", name.size(), name, c10::toString(tensor.scalar_type()),
                                fmt::join(tensor.sizes(), ", ")));
      digest.update(tensor.const_data_ptr(), tensor.nbytes());
      drop_pages(name);
    }
    digest_ = digest.hex();
  }
  return digest_;
}

bool WeightSource::is_copy(const std::string& name, const std::string& other) const {
  if (shape(name) != shape(other)) return false;
  const std::lock_guard lock(copies_mutex_);
  const std::pair key(name, other);
  if (const auto done = copies_.find(key); done != copies_.end()) return done->second;
  const at::Tensor one = get(name).contiguous(), two = get(other).contiguous();
  const bool are_equal = one.scalar_type() == two.scalar_type() &&
                         std::memcmp(one.const_data_ptr(), two.const_data_ptr(), one.nbytes()) == 0;
  drop_pages(name);
  drop_pages(other);
  return copies_.emplace(key, are_equal).first->second;
}

std::unique_ptr<WeightSource> random_weights(
    const std::vector<std::pair<std::string, std::vector<std::int64_t>>>& shapes, double deviation, std::uint64_t seed,
    at::ScalarType type) {
  return std::make_unique<RandomWeights>(shapes, deviation, seed, type);
}

}  // namespace espalier::model
