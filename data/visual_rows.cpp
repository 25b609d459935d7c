// SPDX-License-Identifier: Apache-2.0
#include "data/visual_rows.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace espalier::data {

bool VisualRows::are_in(const DatasetReader& reader, const std::string& split) {
  return reader.file().contains(split + "/vis_feats");
}

VisualRows::VisualRows(const DatasetReader& reader, const DatasetInfo& info, const std::string& split,
                       std::int64_t num_rows) {
  const std::string array = split + "/vis_feats";
  const auto stored = reader.stored_elements(array, Hdf5Type::kFloat32, "float32", /*num_dims=*/3);
  const std::int64_t num_images = stored.shape[0];
  tokens_ = stored.shape[1];
  width_ = stored.shape[2];
  const auto image_bytes = tokens_ * width_ * static_cast<std::int64_t>(sizeof(float));
  // As bytes, since a file need not align its arrays.
  features_ = at::from_file(info.path.string(), /*shared=*/false, stored.offset + num_images * image_bytes, at::kByte)
                  .slice(/*dim=*/0, stored.offset)
                  .view({num_images, image_bytes});

  if (const std::string boxes = split + "/vis_boxes"; reader.file().contains(boxes)) {
    const std::vector<std::int64_t> expected = {num_images, tokens_, 4};
    if (reader.stored_elements(boxes, Hdf5Type::kFloat32, "float32", /*num_dims=*/3).shape != expected) {
      reader.refuse(boxes, fmt::format("shape [{}], a box for every feature", fmt::join(expected, ", ")), "another");
    }
    boxes_ = at::tensor(reader.file().read_vector<float>(boxes)).view(expected);
  }

  const std::string index = split + "/image_index";
  const auto shape = reader.file().info(index).shape;
  const std::int64_t num_columns = shape.size() == 2 ? std::max<std::int64_t>(shape[1], 1) : 1;
  const auto images = reader.list<std::int64_t>(index, {Hdf5Type::kInt64, Hdf5Type::kInt32}, "int64", num_columns);
  reader.expect_size(index, images.size(), static_cast<std::size_t>(num_rows * num_columns), "as many rows as inputs");
  for (const std::int64_t image : images) {
    if (image < 0 || image >= num_images) {
      reader.refuse(index, fmt::format("images in [0, {}) (vis_feats)", num_images), std::to_string(image));
    }
  }
  index_ = at::tensor(images, at::kLong).view({num_rows, num_columns});
}

void VisualRows::add(NamedTensors& batch, const std::vector<std::int64_t>& rows) const {
  const auto num_rows = static_cast<std::int64_t>(rows.size());
  const auto images = index_.index_select(/*dim=*/0, at::tensor(rows, at::kLong)).flatten();  // [B * I]
  const auto num_tokens = index_.size(1) * tokens_;
  batch["vis_feats"] = features_.index_select(/*dim=*/0, images).view(at::kFloat).view({num_rows, num_tokens, width_});
  if (boxes_.defined()) {
    batch["vis_boxes"] = boxes_.index_select(/*dim=*/0, images).view({num_rows, num_tokens, 4});
  }
  if (index_.size(1) > 1) {
    const auto places = at::arange(num_tokens, at::kLong).repeat({num_rows, 1});
    batch["img_order_ids"] = at::floor_divide(places, tokens_);
    batch["obj_order_ids"] = at::remainder(places, tokens_);
  }
}

}  // namespace espalier::data
