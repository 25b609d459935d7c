// SPDX-License-Identifier: Apache-2.0
// Images with a class each. Pixels stay in the file and are mapped: a split may be larger than memory, the ranks of a
// machine share what is read, and a run that never asks for the test images never reads them (in a file without a
// content_digest: but for making one).
#include <ATen/ATen.h>

#include <functional>
#include <numeric>
#include <utility>

#include "common/check.h"
#include "data/text_split.h"

namespace espalier::data {
namespace {

/// [1, C, 1, 1]
at::Tensor per_channel(const std::vector<float>& values) {
  return at::tensor(values).view({1, -1, 1, 1});
}

class ImageSplit final : public Split {
 public:
  ImageSplit(const DatasetReader& reader, const DatasetInfo& info, std::string split)
      : name_(std::move(split)), mean_(per_channel(info.pixel_mean)), std_(per_channel(info.pixel_std)) {
    const std::string array = name_ + "/pixels";
    const auto stored = reader.stored_elements(array, Hdf5Type::kUInt8, "uint8", /*num_dims=*/4);
    if (stored.shape[3] != mean_.numel()) {
      reader.refuse(array, fmt::format("{} channels (pixel_mean), in the last dimension", mean_.numel()),
                    fmt::format("shape [{}]", fmt::join(stored.shape, ", ")));
    }
    const auto num_bytes =
        std::accumulate(stored.shape.begin(), stored.shape.end(), std::int64_t{1}, std::multiplies<>());
    pixels_ = at::from_file(info.path.string(), /*shared=*/false, stored.offset + num_bytes, at::kByte)
                  .slice(/*dim=*/0, stored.offset)
                  .view(stored.shape);
    labels_ = at::tensor(reader.classes(name_ + "/labels", num_rows(), info.num_labels), at::kLong);
  }

  const std::string& name() const override { return name_; }
  std::int64_t num_rows() const override { return pixels_.size(0); }
  std::int64_t length(std::int64_t /*row*/) const override { return 1; }
  std::int64_t num_targets(std::int64_t /*row*/, std::int64_t /*max_length*/) const override { return 1; }

  at::Tensor labels(const std::string& tensor) const override {
    ESPALIER_CHECK(tensor == "labels", "{}: {}", name_, tensor);
    return labels_.clone();
  }

  NamedTensors collate(const std::vector<std::int64_t>& rows, std::int64_t /*max_length*/,
                       std::int64_t /*pad_multiple*/, std::int64_t /*fixed_length*/) const override {
    ESPALIER_CHECK(!rows.empty(), "no rows of {}", name_);
    const auto index = at::tensor(rows, at::kLong);
    auto values = pixels_.index_select(/*dim=*/0, index).permute({0, 3, 1, 2}).to(at::kFloat).contiguous();
    values.div_(255).sub_(mean_).div_(std_);  // [B, C, H, W]
    return {{"pixel_values", std::move(values)}, {"labels", labels_.index_select(/*dim=*/0, index)}};
  }

 private:
  std::string name_;
  at::Tensor mean_, std_;
  at::Tensor pixels_;  // [N, H, W, C] bytes of the mapped file
  at::Tensor labels_;  // [N]
};

}  // namespace

std::shared_ptr<const Split> read_image_split(const DatasetReader& reader, const DatasetInfo& info,
                                              const std::string& name) {
  return std::make_shared<ImageSplit>(reader, info, name);
}

}  // namespace espalier::data
