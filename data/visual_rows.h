// SPDX-License-Identifier: Apache-2.0
// The images of rows that have some beside their text, as features that another program extracted. They stay in the
// file and are mapped: a split may be larger than memory, and an image that many rows ask about is stored once.
// N rows, I images of a row, V visual tokens of an image, F feature width
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "data/dataset.h"
#include "data/dataset_reader.h"

namespace espalier::data {

class VisualRows {
 public:
  /// Whether the split has images at all.
  static bool are_in(const DatasetReader& reader, const std::string& split);
  /// Reads `<split>/vis_feats`, `<split>/image_index` and, where it is there, `<split>/vis_boxes`. Requires: are_in().
  /// Throws: as DatasetReader.
  VisualRows(const DatasetReader& reader, const DatasetInfo& info, const std::string& split, std::int64_t num_rows);

  /// Adds vis_feats [B, I * V, F], vis_boxes [B, I * V, 4] if the file has them, and where a row has several images
  /// img_order_ids and obj_order_ids [B, I * V].
  void add(NamedTensors& batch, const std::vector<std::int64_t>& rows) const;

 private:
  std::int64_t tokens_ = 0, width_ = 0;  // V, F
  at::Tensor features_;                  // [images, V * F * 4] bytes of the mapped file
  at::Tensor boxes_;                     // [images, V, 4]; undefined: none
  at::Tensor index_;                     // [N, I]
};

}  // namespace espalier::data
