// SPDX-License-Identifier: Apache-2.0
// The reader of docs/dataset_format.md: what the file says of itself. The rows are read by the split of its task.
#include "data/dataset.h"

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
#include "data/dataset_reader.h"
#include "data/text_split.h"

namespace espalier::data {

namespace {

// docs/dataset_format.md lists the versions.
constexpr std::int64_t kFormatVersion = 1;
constexpr std::array<std::string_view, 3> kSplitNames = {"train", "validation", "test"};

// Every task by the name it has in files, and the labels that its rows have.
struct TaskRule {
  TaskKind kind;
  std::string_view name;
  bool has_labels;
  std::int64_t fewest_labels;
  bool names_labels;
  bool has_tokens = true;
};
constexpr std::array<TaskRule, 7> kTasks = {
    {{TaskKind::kClassification, "classification", true, 2, true},
     {TaskKind::kRegression, "regression", true, 1, false},
     {TaskKind::kMultiLabel, "multi_label", true, 1, true},
     {TaskKind::kSeq2Seq, "seq2seq", false, 0, false},
     {TaskKind::kCausalLm, "causal_lm", false, 0, false},
     {TaskKind::kMultipleChoice, "multiple_choice", false, 0, false},
     {TaskKind::kImageClassification, "image_classification", true, 2, true, /*has_tokens=*/false}}};

const TaskRule& rule_of(TaskKind kind) {
  return *std::find_if(kTasks.begin(), kTasks.end(), [&](const TaskRule& rule) { return rule.kind == kind; });
}

const TaskRule& parse_task(const DatasetReader& reader) {
  const std::string text = reader.text("task");
  std::vector<std::string_view> names;
  for (const TaskRule& rule : kTasks) {
    if (rule.name == text) {
      return rule;
    }
    names.push_back(rule.name);
  }
  reader.refuse("attribute task", fmt::format("one of {}", fmt::join(names, ", ")), fmt::format("'{}'", text));
}

bool is_list_of_texts(const nlohmann::json& value) {
  return value.is_array() &&
         std::all_of(value.begin(), value.end(), [](const nlohmann::json& item) { return item.is_string(); });
}

std::vector<std::string> parse_label_names(const DatasetReader& reader) {
  const std::string text = reader.text("label_names");
  const auto names = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!is_list_of_texts(names)) {
    reader.refuse("attribute label_names", "a JSON list of texts", fmt::format("'{}'", text));
  }
  return names.get<std::vector<std::string>>();
}

std::map<std::string, std::vector<std::string>> parse_label_columns(const DatasetReader& reader) {
  const auto text = reader.file().text_attribute("/", "label_columns");
  if (!text) {
    return {};
  }
  const auto columns = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!columns.is_object() || !std::all_of(columns.begin(), columns.end(), is_list_of_texts)) {
    reader.refuse("attribute label_columns", "a JSON object of lists of texts", fmt::format("'{}'", *text));
  }
  return columns.get<std::map<std::string, std::vector<std::string>>>();
}

void read_token_attributes(const DatasetReader& reader, DatasetInfo& info) {
  info.vocab_size = reader.integer("vocab_size", 1);
  info.pad_token_id = reader.integer("pad_token_id", 0);
  if (info.pad_token_id >= info.vocab_size) {
    reader.refuse("attribute pad_token_id", fmt::format("below vocab_size ({})", info.vocab_size),
                  std::to_string(info.pad_token_id));
  }
  info.max_length = reader.integer("max_length", 1);
}

std::vector<float> parse_channels(const DatasetReader& reader, const std::string& name) {
  const std::string text = reader.text(name);
  const auto values = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!values.is_array() || values.empty() ||
      !std::all_of(values.begin(), values.end(), [](const nlohmann::json& item) { return item.is_number(); })) {
    reader.refuse("attribute " + name, "a JSON list of numbers, one for each channel", fmt::format("'{}'", text));
  }
  return values.get<std::vector<float>>();
}

void read_pixel_attributes(const DatasetReader& reader, DatasetInfo& info) {
  for (const auto* name : {"vocab_size", "pad_token_id", "max_length"}) {
    if (const std::int64_t value = reader.integer(name, 0); value != 0) {
      reader.refuse(std::string("attribute ") + name, "0 for images", std::to_string(value));
    }
  }
  info.pixel_mean = parse_channels(reader, "pixel_mean");
  info.pixel_std = parse_channels(reader, "pixel_std");
  if (info.pixel_std.size() != info.pixel_mean.size()) {
    reader.refuse("attribute pixel_std", fmt::format("{} channels, as pixel_mean", info.pixel_mean.size()),
                  std::to_string(info.pixel_std.size()));
  }
  const auto is_spread = [](float value) { return std::isfinite(value) && value > 0; };
  if (!std::all_of(info.pixel_std.begin(), info.pixel_std.end(), is_spread)) {
    reader.refuse("attribute pixel_std", "numbers above 0", fmt::format("{}", fmt::join(info.pixel_std, ", ")));
  }
}

/// Tells this file from others. What is mapped may be larger than memory, so the word of the writer, who saw all of it,
/// is taken for the content; the size shows a file that somebody added to.
std::string read_content_digest(const DatasetReader& reader) {
  const auto& path = reader.file().path();
  const auto stored = reader.file().text_attribute("/", "content_digest");
  if (!stored) {
    return digest_of_file(path);
  }
  constexpr std::string_view kPrefix = "sha256:";
  constexpr std::size_t kDigits = 64;
  if (!stored->starts_with(kPrefix) || stored->size() != kPrefix.size() + kDigits ||
      stored->find_first_not_of("0123456789abcdef", kPrefix.size()) != std::string::npos) {
    reader.refuse("attribute content_digest", "sha256: and 64 hexadecimal digits", fmt::format("'{}'", *stored));
  }
  return fmt::format("{} ({} bytes)", *stored, std::filesystem::file_size(path));
}

DatasetInfo read_info(const DatasetReader& reader) {
  DatasetInfo info;
  info.path = reader.file().path();
  const std::int64_t version = reader.integer("format_version", 0);
  if (version != kFormatVersion) {
    reader.refuse("attribute format_version", std::to_string(kFormatVersion), std::to_string(version));
  }
  const TaskRule& rule = parse_task(reader);
  info.task = rule.kind;
  info.num_labels = reader.integer("num_labels", rule.fewest_labels);
  if (!rule.has_labels && info.num_labels != 0) {
    reader.refuse("attribute num_labels", fmt::format("0 for {}", rule.name), std::to_string(info.num_labels));
  }
  info.label_names = parse_label_names(reader);
  // The names of a task without labels are the texts that its targets may be: for metrics of classes, any number.
  const std::int64_t num_names = rule.names_labels ? info.num_labels : 0;
  if (rule.has_labels && static_cast<std::int64_t>(info.label_names.size()) != num_names) {
    reader.refuse("attribute label_names", fmt::format("{} names", num_names),
                  fmt::format("{} names", info.label_names.size()));
  }
  info.label_columns = parse_label_columns(reader);
  if (!(rule.has_labels && rule.has_tokens) && !info.label_columns.empty()) {
    reader.refuse("attribute label_columns", fmt::format("none for {}", rule.name),
                  fmt::format("{}", info.label_columns.begin()->first));
  }
  rule.has_tokens ? read_token_attributes(reader, info) : read_pixel_attributes(reader, info);
  info.tokenizer_digest = reader.text("tokenizer_digest");
  info.source_digest = reader.text("source_digest");
  info.content_digest = read_content_digest(reader);
  return info;
}

}  // namespace

std::int64_t Split::prompt_length(std::int64_t /*row*/) const {
  ESPALIER_CHECK(false, "{}: a prompt to go on from", name());
}

at::Tensor Split::labels(const std::string& tensor) const {
  ESPALIER_CHECK(false, "{}: {} that are not tokens", name(), tensor);
}

std::string_view to_string(TaskKind kind) {
  return rule_of(kind).name;
}

DatasetInfo with_label_column(DatasetInfo info, const std::string& column) {
  if (column.empty()) {
    return info;
  }
  const auto found = info.label_columns.find(column);
  if (found == info.label_columns.end()) {
    std::vector<std::string> names;
    for (const auto& [name, class_names] : info.label_columns) {
      names.push_back(name);
    }
    throw ConfigError(fmt::format("data.label_column: expected {}, found '{}' ({} has {} further label columns)",
                                  names.empty() ? "nothing" : fmt::format("one of {}", fmt::join(names, ", ")), column,
                                  info.path.string(), names.size()));
  }
  info.label_names = found->second;
  info.task = info.label_names.empty() ? TaskKind::kRegression : TaskKind::kClassification;
  info.num_labels = std::max<std::int64_t>(static_cast<std::int64_t>(info.label_names.size()), 1);
  info.label_tensor = "labels_" + column;
  return info;
}

Dataset Dataset::open(const std::filesystem::path& path) {
  if (!std::filesystem::is_regular_file(path)) {
    throw ConfigError(fmt::format("{}: expected a dataset file (data.path), found none; make it with tools/prepare.py",
                                  path.string()));
  }
  const DatasetReader reader(path);
  Dataset dataset;
  dataset.info_ = read_info(reader);
  for (const std::string& name : reader.file().children("/")) {
    if (std::find(kSplitNames.begin(), kSplitNames.end(), name) == kSplitNames.end()) {
      reader.refuse(name, fmt::format("only the groups {}", fmt::join(kSplitNames, ", ")), "one more object");
    }
    dataset.splits_[name] = read_split(reader, dataset.info_, name);
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
