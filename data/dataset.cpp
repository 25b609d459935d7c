// SPDX-License-Identifier: Apache-2.0
// The reader of docs/dataset_format.md. Everything is checked once at open, so that collate() can copy without looking:
// offsets that lead outside the ids, ids outside the vocabulary and labels outside the classes never reach a tensor.
#include "data/dataset.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "common/check.h"
#include "common/digest.h"
#include "common/error.h"
#include "common/hdf5_file.h"

namespace espalier::data {

namespace {

// docs/dataset_format.md lists the versions.
constexpr std::int64_t kFormatVersion = 1;
constexpr std::array<std::string_view, 3> kSplitNames = {"train", "validation", "test"};
constexpr std::array<std::string_view, 6> kArrayNames = {"input_ids", "input_offsets", "token_type_ids",
                                                         "labels",    "id_bytes",      "id_offsets"};

// Sentences about one object of one file.
class Reader {
 public:
  explicit Reader(const std::filesystem::path& path) : file_(Hdf5File::open(path)) {}

  [[nodiscard]] const Hdf5File& file() const { return file_; }

  [[noreturn]] void refuse(std::string_view object, std::string_view expected, std::string_view found) const {
    throw ConfigError(fmt::format("{}: {}: expected {}, found {}; make the file again with tools/prepare.py",
                                  file_.path().string(), object, expected, found));
  }

  [[nodiscard]] std::string text(const std::string& name) const {
    const auto value = file_.text_attribute("/", name);
    if (!value) {
      refuse("attribute " + name, "a text", "none");
    }
    return *value;
  }

  [[nodiscard]] std::int64_t integer(const std::string& name, std::int64_t lowest) const {
    const auto value = file_.int_attribute("/", name);
    if (!value) {
      refuse("attribute " + name, "a whole number", "none");
    }
    if (*value < lowest) {
      refuse("attribute " + name, fmt::format("at least {}", lowest), std::to_string(*value));
    }
    return *value;
  }

  // A list of numbers; `kind` is the stored type as the format names it.
  template <typename T>
  [[nodiscard]] std::vector<T> list(const std::string& name, std::initializer_list<Hdf5Type> types,
                                    std::string_view kind) const {
    const Hdf5Info info = file_.info(name);
    if (info.shape.size() != 1 || std::find(types.begin(), types.end(), info.type) == types.end()) {
      refuse(name, fmt::format("a list of {}", kind),
             fmt::format("shape [{}] of another kind or type", fmt::join(info.shape, ", ")));
    }
    // Arrays are stored as they are, so one that says it is larger than its file is damaged: refused before it is
    // allocated.
    const auto bytes = static_cast<double>(info.shape[0]) * static_cast<double>(size_of(info.type));
    if (bytes > static_cast<double>(std::filesystem::file_size(file_.path()))) {
      refuse(name, "no more elements than the file has bytes for", fmt::format("{} elements", info.shape[0]));
    }
    return file_.read_vector<T>(name);
  }

  // Row r of a ragged array is [offsets[r], offsets[r + 1]).
  [[nodiscard]] std::vector<std::int64_t> offsets(const std::string& name, std::size_t num_elements,
                                                  std::int64_t shortest_row) const {
    auto offsets = list<std::int64_t>(name, {Hdf5Type::kInt64, Hdf5Type::kInt32}, "int64");
    if (offsets.size() < 2) {
      refuse(name, "rows + 1 offsets for at least one row", fmt::format("{} offsets", offsets.size()));
    }
    if (offsets.front() != 0) {
      refuse(name, "0 as the first offset", std::to_string(offsets.front()));
    }
    for (std::size_t row = 0; row + 1 < offsets.size(); ++row) {
      // Compared, not subtracted: a damaged offset may be near either end of the type.
      if (offsets[row + 1] < offsets[row] || offsets[row + 1] - offsets[row] < shortest_row) {
        refuse(name, fmt::format("row {} to have at least {} elements", row, shortest_row),
               fmt::format("offsets {} and {}", offsets[row], offsets[row + 1]));
      }
    }
    if (offsets.back() != static_cast<std::int64_t>(num_elements)) {
      refuse(name, fmt::format("{} as the last offset (the number of elements)", num_elements),
             std::to_string(offsets.back()));
    }
    return offsets;
  }

  void expect_size(const std::string& name, std::size_t found, std::size_t expected, std::string_view of_what) const {
    if (found != expected) {
      refuse(name, fmt::format("{} elements ({})", expected, of_what), std::to_string(found));
    }
  }

 private:
  Hdf5File file_;
};

TaskKind parse_task(const Reader& reader) {
  const std::string text = reader.text("task");
  for (const TaskKind kind : {TaskKind::kClassification, TaskKind::kRegression}) {
    if (text == to_string(kind)) {
      return kind;
    }
  }
  reader.refuse("attribute task", "classification or regression", fmt::format("'{}'", text));
}

std::vector<std::string> parse_label_names(const Reader& reader) {
  const std::string text = reader.text("label_names");
  const auto names = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto is_text = [](const nlohmann::json& name) { return name.is_string(); };
  if (!names.is_array() || !std::all_of(names.begin(), names.end(), is_text)) {
    reader.refuse("attribute label_names", "a JSON list of texts", fmt::format("'{}'", text));
  }
  return names.get<std::vector<std::string>>();
}

DatasetInfo read_info(const Reader& reader, std::string content_digest) {
  DatasetInfo info;
  info.path = reader.file().path();
  const std::int64_t version = reader.integer("format_version", 0);
  if (version != kFormatVersion) {
    reader.refuse("attribute format_version", std::to_string(kFormatVersion), std::to_string(version));
  }
  info.task = parse_task(reader);
  info.num_labels = reader.integer("num_labels", 1);
  info.label_names = parse_label_names(reader);
  const bool is_classification = info.task == TaskKind::kClassification;
  if (is_classification && info.num_labels < 2) {
    reader.refuse("attribute num_labels", "at least 2 classes", std::to_string(info.num_labels));
  }
  const std::int64_t num_names = is_classification ? info.num_labels : 0;
  if (static_cast<std::int64_t>(info.label_names.size()) != num_names) {
    reader.refuse("attribute label_names", fmt::format("{} names", num_names),
                  fmt::format("{} names", info.label_names.size()));
  }
  info.vocab_size = reader.integer("vocab_size", 1);
  info.pad_token_id = reader.integer("pad_token_id", 0);
  if (info.pad_token_id >= info.vocab_size) {
    reader.refuse("attribute pad_token_id", fmt::format("below vocab_size ({})", info.vocab_size),
                  std::to_string(info.pad_token_id));
  }
  info.max_length = reader.integer("max_length", 1);
  info.tokenizer_digest = reader.text("tokenizer_digest");
  info.source_digest = reader.text("source_digest");
  info.content_digest = std::move(content_digest);
  return info;
}

class TextSplit final : public Split {
 public:
  TextSplit(const Reader& reader, const DatasetInfo& info, std::string name)
      : path_(info.path), name_(std::move(name)), pad_token_id_(info.pad_token_id) {
    refuse_unknown_arrays(reader);
    const std::string ids = name_ + "/input_ids";
    input_ids_ = reader.list<std::int32_t>(ids, {Hdf5Type::kInt32, Hdf5Type::kInt64}, "int32");
    input_offsets_ = reader.offsets(name_ + "/input_offsets", input_ids_.size(), /*shortest_row=*/1);
    for (const std::int32_t id : input_ids_) {
      if (id < 0 || id >= info.vocab_size) {
        reader.refuse(ids, fmt::format("token ids in [0, {}) (vocab_size)", info.vocab_size), std::to_string(id));
      }
    }
    if (const std::string types = name_ + "/token_type_ids"; reader.file().contains(types)) {
      token_type_ids_ = reader.list<std::uint8_t>(types, {Hdf5Type::kUInt8}, "uint8");
      reader.expect_size(types, token_type_ids_.size(), input_ids_.size(), "as input_ids");
    }
    read_labels(reader, info);
    check_row_ids(reader);
  }

  const std::string& name() const override { return name_; }
  std::int64_t num_rows() const override { return static_cast<std::int64_t>(input_offsets_.size()) - 1; }
  std::int64_t length(std::int64_t row) const override {
    ESPALIER_CHECK(row >= 0 && row < num_rows(), "row {} of {}", row, num_rows());
    return input_offsets_[row + 1] - input_offsets_[row];
  }

  NamedTensors collate(const std::vector<std::int64_t>& rows, std::int64_t max_length, std::int64_t pad_multiple,
                       std::int64_t fixed_length) const override;

 private:
  void refuse_unknown_arrays(const Reader& reader) const {
    for (const std::string& array : reader.file().children(name_)) {
      if (std::find(kArrayNames.begin(), kArrayNames.end(), array) == kArrayNames.end()) {
        reader.refuse(name_ + "/" + array, fmt::format("only the arrays {}", fmt::join(kArrayNames, ", ")), "one more");
      }
    }
  }

  void read_labels(const Reader& reader, const DatasetInfo& info) {
    const std::string labels = name_ + "/labels";
    if (info.task == TaskKind::kClassification) {
      classes_ = reader.list<std::int64_t>(labels, {Hdf5Type::kInt64, Hdf5Type::kInt32}, "int64");
      reader.expect_size(labels, classes_.size(), static_cast<std::size_t>(num_rows()), "one a row");
      for (std::size_t row = 0; row < classes_.size(); ++row) {
        if (classes_[row] < 0 || classes_[row] >= info.num_labels) {
          reader.refuse(labels, fmt::format("classes in [0, {}) (num_labels)", info.num_labels),
                        fmt::format("{} in row {}", classes_[row], row));
        }
      }
    } else {
      targets_ = reader.list<float>(labels, {Hdf5Type::kFloat32, Hdf5Type::kFloat64}, "float32");
      reader.expect_size(labels, targets_.size(), static_cast<std::size_t>(num_rows()), "one a row");
      for (std::size_t row = 0; row < targets_.size(); ++row) {
        if (!std::isfinite(targets_[row])) {
          reader.refuse(labels, "finite targets", fmt::format("{} in row {}", targets_[row], row));
        }
      }
    }
  }

  // The ids are for people and other programs: checked with the rest, not kept.
  void check_row_ids(const Reader& reader) const {
    const auto bytes = reader.list<std::uint8_t>(name_ + "/id_bytes", {Hdf5Type::kUInt8}, "uint8");
    const std::string name = name_ + "/id_offsets";
    reader.expect_size(name, reader.offsets(name, bytes.size(), /*shortest_row=*/0).size(), input_offsets_.size(),
                       "rows + 1");
  }

  std::filesystem::path path_;
  std::string name_;
  std::int64_t pad_token_id_;
  std::vector<std::int32_t> input_ids_;
  std::vector<std::int64_t> input_offsets_;   // [rows + 1]
  std::vector<std::uint8_t> token_type_ids_;  // as input_ids, or empty
  std::vector<std::int64_t> classes_;         // [rows], classification
  std::vector<float> targets_;                // [rows], regression
};

NamedTensors TextSplit::collate(const std::vector<std::int64_t>& rows, std::int64_t max_length,
                                std::int64_t pad_multiple, std::int64_t fixed_length) const {
  ESPALIER_CHECK(!rows.empty() && max_length > 0 && pad_multiple > 0 && fixed_length >= 0,
                 "{} rows, max_length {}, pad_multiple {}, fixed_length {}", rows.size(), max_length, pad_multiple,
                 fixed_length);
  std::int64_t longest = 0;
  for (const std::int64_t row : rows) {
    longest = std::max(longest, std::min(length(row), max_length));
  }
  if (fixed_length != 0 && longest > fixed_length) {
    throw ConfigError(
        fmt::format("{}: {}: expected rows of at most {} tokens (data.fixed_length), found one of {}; raise "
                    "data.fixed_length or lower data.max_length",
                    path_.string(), name_, fixed_length, longest));
  }
  const std::int64_t width =
      fixed_length != 0 ? fixed_length : (longest + pad_multiple - 1) / pad_multiple * pad_multiple;
  const auto num_batch_rows = static_cast<std::int64_t>(rows.size());

  // B = num_batch_rows, T = width
  const auto new_tensor = [&] { return at::empty({num_batch_rows, width}, at::kLong); };  // [B, T]
  NamedTensors batch{{"input_ids", new_tensor()}, {"attention_mask", new_tensor()}};
  auto* ids = batch["input_ids"].mutable_data_ptr<std::int64_t>();
  auto* mask = batch["attention_mask"].mutable_data_ptr<std::int64_t>();
  std::int64_t* types = nullptr;
  if (!token_type_ids_.empty()) {
    types = (batch["token_type_ids"] = new_tensor()).mutable_data_ptr<std::int64_t>();
  }
  for (std::int64_t index = 0; index < num_batch_rows; ++index) {
    const std::int64_t begin = input_offsets_[rows[index]];
    const std::int64_t num_tokens = std::min(length(rows[index]), max_length);
    const std::int64_t num_padding = width - num_tokens;
    const std::int64_t start = index * width;
    std::fill_n(std::copy_n(input_ids_.data() + begin, num_tokens, ids + start), num_padding, pad_token_id_);
    std::fill_n(std::fill_n(mask + start, num_tokens, 1), num_padding, 0);
    if (types != nullptr) {
      std::fill_n(std::copy_n(token_type_ids_.data() + begin, num_tokens, types + start), num_padding, 0);
    }
  }

  const auto gather_labels = [&](const auto& values, at::ScalarType type) {
    using Value = typename std::decay_t<decltype(values)>::value_type;
    auto labels = at::empty({num_batch_rows}, type);  // [B]
    std::transform(rows.begin(), rows.end(), labels.template mutable_data_ptr<Value>(),
                   [&](std::int64_t row) { return values[row]; });
    return labels;
  };
  batch["labels"] = targets_.empty() ? gather_labels(classes_, at::kLong) : gather_labels(targets_, at::kFloat);
  return batch;
}

}  // namespace

std::string_view to_string(TaskKind kind) {
  return kind == TaskKind::kClassification ? "classification" : "regression";
}

Dataset Dataset::open(const std::filesystem::path& path) {
  if (!std::filesystem::is_regular_file(path)) {
    throw ConfigError(fmt::format("{}: expected a dataset file (data.path), found none; make it with tools/prepare.py",
                                  path.string()));
  }
  const Reader reader(path);
  Dataset dataset;
  dataset.info_ = read_info(reader, digest_of_file(path));
  for (const std::string& name : reader.file().children("/")) {
    if (std::find(kSplitNames.begin(), kSplitNames.end(), name) == kSplitNames.end()) {
      reader.refuse(name, fmt::format("only the groups {}", fmt::join(kSplitNames, ", ")), "one more object");
    }
    dataset.splits_[name] = std::make_shared<TextSplit>(reader, dataset.info_, name);
  }
  if (dataset.splits_.empty()) {
    reader.refuse("/", fmt::format("at least one of the groups {}", fmt::join(kSplitNames, ", ")), "none");
  }
  return dataset;
}

const Split& Dataset::split(const std::string& name) const {
  const auto found = splits_.find(name);
  if (found == splits_.end()) {
    std::vector<std::string> names;
    for (const auto& [known, split] : splits_) {
      names.push_back(known);
    }
    throw ConfigError(fmt::format("{}: expected a split '{}', found {}; add its rows and run tools/prepare.py again",
                                  info_.path.string(), name, fmt::join(names, ", ")));
  }
  return *found->second;
}

}  // namespace espalier::data
