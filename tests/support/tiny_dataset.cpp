// SPDX-License-Identifier: Apache-2.0
#include "tiny_dataset.h"

#include <vector>

#include "common/hdf5_file.h"
#include "common/random.h"

namespace espalier::test {
namespace {

struct Rows {
  std::vector<std::int32_t> ids;
  std::vector<std::int64_t> offsets{0};
  std::vector<std::int64_t> classes;
  std::vector<float> targets;
  std::vector<std::int32_t> target_ids;
  std::vector<std::int64_t> target_offsets{0};
  std::vector<std::uint8_t> id_bytes;
  std::vector<std::int64_t> id_offsets{0};
};

Rows draw_rows(const TinyDataset& dataset, std::int64_t num_rows, const std::string& split) {
  PhiloxSequence sequence(derive_key(dataset.seed, RandomDomain::kSampler, split));
  Rows rows;
  for (std::int64_t row = 0; row < num_rows; ++row) {
    const auto length =
        3 + static_cast<std::int64_t>(sequence.next_below(static_cast<std::uint64_t>(dataset.longest - 2)));
    std::int64_t first = 0;
    for (std::int64_t token = 0; token < length; ++token) {
      const auto id = 3 + static_cast<std::int64_t>(sequence.next_below(static_cast<std::uint64_t>(dataset.vocab - 3)));
      first = token == 0 ? id : first;
      rows.ids.push_back(static_cast<std::int32_t>(id));
      if (token < 1 + row % 5) rows.target_ids.push_back(static_cast<std::int32_t>(id));
    }
    rows.target_offsets.push_back(static_cast<std::int64_t>(rows.target_ids.size()));
    rows.offsets.push_back(static_cast<std::int64_t>(rows.ids.size()));
    rows.classes.push_back(first * dataset.num_labels / dataset.vocab);
    rows.targets.push_back(static_cast<float>(first) / static_cast<float>(dataset.vocab));
    const auto name = std::to_string(row);
    rows.id_bytes.insert(rows.id_bytes.end(), name.begin(), name.end());
    rows.id_offsets.push_back(static_cast<std::int64_t>(rows.id_bytes.size()));
  }
  return rows;
}

/// Five images that the rows share.
void write_images(const TinyDataset& dataset, std::int64_t num_rows, const std::string& split, Hdf5File& file) {
  constexpr std::int64_t kImages = 5, kTokens = 3, kWidth = 6;
  PhiloxSequence sequence(derive_key(dataset.seed, RandomDomain::kSampler, split + " images"));
  const auto draw = [&](std::int64_t count, std::uint64_t steps, float scale) {
    std::vector<float> values;
    for (std::int64_t i = 0; i < count; ++i) values.push_back(scale * static_cast<float>(sequence.next_below(steps)));
    return values;
  };
  file.write(split + "/vis_feats", Hdf5Type::kFloat32, {kImages, kTokens, kWidth},
             draw(kImages * kTokens * kWidth, 32, 0.125F).data());
  file.write(split + "/vis_boxes", Hdf5Type::kFloat32, {kImages, kTokens, 4},
             draw(kImages * kTokens * 4, 9, 0.125F).data());
  std::vector<std::int64_t> index;
  for (std::int64_t row = 0; row < num_rows; ++row) {
    index.push_back(row % kImages);
    index.push_back((row + row / kImages) % kImages);
  }
  file.write(split + "/image_index", Hdf5Type::kInt64, {num_rows, 2}, index.data());
}

}  // namespace

std::filesystem::path write_tiny_dataset(const TinyDataset& dataset, const std::filesystem::path& path) {
  auto file = Hdf5File::create(path);
  std::string names = "[";
  for (std::int64_t label = 0; label < dataset.num_labels; ++label) {
    names += (label > 0 ? ", " : "") + ("\"label" + std::to_string(label) + "\"");
  }
  const bool is_regression = dataset.task == "regression";
  const bool has_images = dataset.task == "image_classification";
  const bool has_classes = dataset.task == "classification" || has_images;
  file.write_attribute("/", "task", dataset.task);
  file.write_attribute("/", "label_names", has_classes ? names + "]" : "[]");
  if (dataset.has_score) file.write_attribute("/", "label_columns", std::string(R"({"score": []})"));
  file.write_attribute("/", "tokenizer_digest", std::string(has_images ? "" : "sha256:tiny"));
  file.write_attribute("/", "source_digest", std::string("sha256:tiny"));
  file.write_attribute("/", "format_version", std::int64_t{1});
  file.write_attribute("/", "num_labels", has_classes ? dataset.num_labels : std::int64_t{is_regression});
  file.write_attribute("/", "pad_token_id", std::int64_t{0});
  file.write_attribute("/", "vocab_size", has_images ? 0 : dataset.vocab);
  file.write_attribute("/", "max_length", has_images ? 0 : dataset.longest);
  if (has_images) {
    file.write_attribute("/", "pixel_mean", std::string("[0.5]"));
    file.write_attribute("/", "pixel_std", std::string("[0.5]"));
  }
  for (const std::string split : {"train", "validation", "test"}) {
    if (split == "validation" && !dataset.has_validation) continue;
    const auto rows = draw_rows(dataset, split == "train" ? dataset.num_rows : dataset.num_rows / 3, split);
    const auto write = [&](const std::string& name, Hdf5Type type, const auto& values) {
      file.write(split + "/" + name, type, {static_cast<std::int64_t>(values.size())}, values.data());
    };
    if (has_images) {
      const auto num_rows = static_cast<std::int64_t>(rows.classes.size());
      std::vector<std::uint8_t> pixels;
      for (std::int64_t row = 0; row < num_rows; ++row) {
        const auto first = rows.ids[static_cast<std::size_t>(rows.offsets[static_cast<std::size_t>(row)])];
        for (int pixel = 0; pixel < 64; ++pixel) pixels.push_back(static_cast<std::uint8_t>(5 * first + pixel % 3));
      }
      file.write(split + "/pixels", Hdf5Type::kUInt8, {num_rows, 8, 8, 1}, pixels.data());
    } else {
      write("input_ids", Hdf5Type::kInt32, rows.ids);
      write("input_offsets", Hdf5Type::kInt64, rows.offsets);
    }
    if (is_regression) {
      write("labels", Hdf5Type::kFloat32, rows.targets);
    } else if (dataset.task == "seq2seq") {
      write("target_ids", Hdf5Type::kInt32, rows.target_ids);
      write("target_offsets", Hdf5Type::kInt64, rows.target_offsets);
      if (dataset.is_visual) write_images(dataset, static_cast<std::int64_t>(rows.classes.size()), split, file);
    } else if (dataset.task == "causal_lm") {
      write("prompt_lengths", Hdf5Type::kInt64, std::vector<std::int64_t>(rows.offsets.size() - 1, 1));
    } else {
      write("labels", Hdf5Type::kInt64, rows.classes);
      if (dataset.has_score) write("labels_score", Hdf5Type::kFloat32, rows.targets);
    }
    write("id_bytes", Hdf5Type::kUInt8, rows.id_bytes);
    write("id_offsets", Hdf5Type::kInt64, rows.id_offsets);
  }
  file.flush_and_close();
  return path;
}

}  // namespace espalier::test
