// SPDX-License-Identifier: Apache-2.0
// The reader of dataset files: what collate() makes of rows, and every damaged file refused by the name of its object.
#include "data/dataset.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <limits>
#include <optional>

#include "common/digest.h"
#include "common/error.h"
#include "common/hdf5_file.h"

namespace espalier::data {
namespace {

// One split as plain vectors; write() makes the file, so that a test can damage any part of it.
struct StoredSplit {
  std::vector<std::int32_t> input_ids = {2, 10, 11, 3, 2, 3, 2, 10, 11, 12, 13, 14, 15, 16, 17, 3};
  std::vector<std::int64_t> input_offsets = {0, 4, 6, 16};
  std::optional<std::vector<std::uint8_t>> token_type_ids;
  std::vector<std::int64_t> classes = {1, 0, 2};
  std::vector<float> targets = {0.5F, -1.25F, 3.0F};
  std::vector<std::uint8_t> id_bytes = {'a', 'b', 'c', 'd'};
  std::vector<std::int64_t> id_offsets = {0, 1, 1, 4};
  std::string labels_name = "labels";
};

struct StoredFile {
  std::map<std::string, std::string> texts = {{"task", "classification"},
                                              {"label_names", R"(["bad", "fair", "good"])"},
                                              {"tokenizer_digest", "sha256:aa"},
                                              {"source_digest", "sha256:bb"}};
  std::map<std::string, std::int64_t> numbers = {
      {"format_version", 1}, {"num_labels", 3}, {"pad_token_id", 7}, {"vocab_size", 20}, {"max_length", 16}};
  std::map<std::string, StoredSplit> splits = {{"train", {}}};
};

template <typename T>
std::vector<std::int64_t> shape_of(const std::vector<T>& values) {
  return {static_cast<std::int64_t>(values.size())};
}

class DatasetTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) / ("espalier_dataset_test_" + std::to_string(getpid()));
    std::filesystem::create_directories(folder_);
    path_ = folder_ / "data.h5";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  Dataset open(const StoredFile& plain, const std::function<void(Hdf5File&)>& damage = nullptr) {
    Hdf5File file = Hdf5File::create(path_);
    for (const auto& [name, value] : plain.texts) {
      file.write_attribute("/", name, value);
    }
    for (const auto& [name, value] : plain.numbers) {
      file.write_attribute("/", name, value);
    }
    for (const auto& [name, split] : plain.splits) {
      const auto write = [&, prefix = name + "/"](const std::string& array, Hdf5Type type, const auto& values) {
        file.write(prefix + array, type, shape_of(values), values.data());
      };
      write("input_ids", Hdf5Type::kInt32, split.input_ids);
      write("input_offsets", Hdf5Type::kInt64, split.input_offsets);
      if (split.token_type_ids) {
        write("token_type_ids", Hdf5Type::kUInt8, *split.token_type_ids);
      }
      if (plain.texts.contains("task") && plain.texts.at("task") == "regression") {
        write(split.labels_name, Hdf5Type::kFloat32, split.targets);
      } else {
        write(split.labels_name, Hdf5Type::kInt64, split.classes);
      }
      write("id_bytes", Hdf5Type::kUInt8, split.id_bytes);
      write("id_offsets", Hdf5Type::kInt64, split.id_offsets);
    }
    if (damage) {
      damage(file);
    }
    file.flush_and_close();
    return Dataset::open(path_);
  }

  // The file must be refused with a sentence that names it and each of `pieces`.
  void expect_refusal(const StoredFile& plain, const std::vector<std::string>& pieces,
                      const std::function<void(Hdf5File&)>& damage = nullptr) {
    try {
      (void)open(plain, damage);
      ADD_FAILURE() << "accepted a file with a wrong " << pieces.front();
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr(path_.string()));
      for (const std::string& piece : pieces) {
        EXPECT_THAT(error.what(), testing::HasSubstr(piece));
      }
    }
  }

  // `change` damages the good file in one place.
  void expect_refusal_after(const std::function<void(StoredFile&)>& change, const std::vector<std::string>& pieces) {
    StoredFile plain;
    change(plain);
    expect_refusal(plain, pieces);
  }

  std::filesystem::path folder_, path_;
};

std::vector<std::int64_t> values(const at::Tensor& tensor) {
  EXPECT_EQ(tensor.scalar_type(), at::kLong);
  EXPECT_TRUE(tensor.is_contiguous());
  const auto* data = tensor.const_data_ptr<std::int64_t>();
  return {data, data + tensor.numel()};
}

TEST_F(DatasetTest, ReadsWhatTheFileSaysOfItself) {
  const Dataset dataset = open({});
  const DatasetInfo& info = dataset.info();
  EXPECT_EQ(info.path, path_);
  EXPECT_EQ(info.task, TaskKind::kClassification);
  EXPECT_EQ(info.num_labels, 3);
  EXPECT_THAT(info.label_names, testing::ElementsAre("bad", "fair", "good"));
  EXPECT_EQ(info.pad_token_id, 7);
  EXPECT_EQ(info.vocab_size, 20);
  EXPECT_EQ(info.max_length, 16);
  EXPECT_EQ(info.tokenizer_digest, "sha256:aa");
  EXPECT_EQ(info.source_digest, "sha256:bb");
  EXPECT_EQ(info.content_digest, digest_of_file(path_));
  EXPECT_TRUE(dataset.has_split("train"));
  EXPECT_FALSE(dataset.has_split("test"));
  EXPECT_EQ(dataset.split("train").name(), "train");
  EXPECT_EQ(dataset.split("train").num_rows(), 3);
  EXPECT_EQ(dataset.split("train").length(0), 4);
  EXPECT_EQ(dataset.split("train").length(2), 10);
}

TEST_F(DatasetTest, TakesTheWordOfItsWriterForTheContentAndTheSizeOfTheFile) {
  const auto write = [](const std::string& digest) {
    return [digest](Hdf5File& file) { file.write_attribute("/", "content_digest", digest); };
  };
  const std::string digest = "sha256:" + std::string(64, 'a');
  const auto found = open({}, write(digest)).info().content_digest;
  EXPECT_EQ(found, digest + " (" + std::to_string(std::filesystem::file_size(path_)) + " bytes)");

  StoredFile longer;
  longer.splits["test"] = {};
  EXPECT_NE(open(longer, write(digest)).info().content_digest, found);
  EXPECT_NE(open({}, write("sha256:" + std::string(64, 'b'))).info().content_digest, found);
  for (const auto* wrong : {"", "sha256:", "aa"}) {
    expect_refusal({}, {"content_digest", "64 hexadecimal digits"}, write(wrong));
  }
  expect_refusal({}, {"content_digest"}, write("sha256:" + std::string(64, 'x')));
}

TEST_F(DatasetTest, PadsRowsOnTheRightToTheLongestRoundedUp) {
  const Dataset dataset = open({});
  const NamedTensors batch = dataset.split("train").collate({1, 0}, 512, /*pad_multiple=*/3, /*fixed_length=*/0);
  ASSERT_EQ(batch.size(), 3u);
  EXPECT_EQ(batch.at("input_ids").sizes(), (std::vector<std::int64_t>{2, 6}));
  EXPECT_THAT(values(batch.at("input_ids")), testing::ElementsAre(2, 3, 7, 7, 7, 7, 2, 10, 11, 3, 7, 7));
  EXPECT_THAT(values(batch.at("attention_mask")), testing::ElementsAre(1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0));
  EXPECT_THAT(values(batch.at("labels")), testing::ElementsAre(0, 1));
}

TEST_F(DatasetTest, PadsToAFixedLengthAndCutsToTheMaximum) {
  const Dataset dataset = open({});
  const Split& split = dataset.split("train");
  EXPECT_EQ(split.collate({1}, 512, 8, 0).at("input_ids").size(1), 8);
  EXPECT_EQ(split.collate({2}, 512, 8, 0).at("input_ids").size(1), 16);
  EXPECT_EQ(split.collate({1}, 512, 8, 12).at("input_ids").size(1), 12);
  const NamedTensors cut = split.collate({2, 0}, /*max_length=*/5, /*pad_multiple=*/1, 0);
  EXPECT_THAT(values(cut.at("input_ids")), testing::ElementsAre(2, 10, 11, 12, 13, 2, 10, 11, 3, 7));
  EXPECT_THAT(values(cut.at("attention_mask")), testing::ElementsAre(1, 1, 1, 1, 1, 1, 1, 1, 1, 0));
  try {
    (void)split.collate({2}, 512, 8, 9);
    ADD_FAILURE() << "a row of 10 tokens was put into 9";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(),
                testing::AllOf(testing::HasSubstr(path_.string()), testing::HasSubstr("data.fixed_length")));
  }
}

TEST_F(DatasetTest, GivesTokenTypesOnlyIfTheFileHasThem) {
  StoredFile plain;
  plain.splits["train"].token_type_ids = std::vector<std::uint8_t>{0, 0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1};
  const Dataset dataset = open(plain);
  const NamedTensors batch = dataset.split("train").collate({0, 1}, 3, 4, 0);
  EXPECT_THAT(values(batch.at("token_type_ids")), testing::ElementsAre(0, 0, 1, 0, 0, 1, 0, 0));
  EXPECT_FALSE(open({}).split("train").collate({0}, 3, 4, 0).contains("token_type_ids"));
}

TEST_F(DatasetTest, GivesNumbersAsLabelsOfARegression) {
  StoredFile plain;
  plain.texts["task"] = "regression";
  plain.texts["label_names"] = "[]";
  plain.numbers["num_labels"] = 1;
  const Dataset dataset = open(plain);
  EXPECT_EQ(dataset.info().task, TaskKind::kRegression);
  const at::Tensor labels = dataset.split("train").collate({2, 1, 1}, 512, 8, 0).at("labels");
  EXPECT_TRUE(at::equal(labels, at::tensor({3.0F, -1.25F, -1.25F})));
}

TEST_F(DatasetTest, KeepsTheSplitsApart) {
  StoredFile plain;
  plain.splits["test"].input_ids[1] = 19;
  plain.splits["validation"].classes = {0, 0, 0};
  const Dataset dataset = open(plain);
  EXPECT_EQ(dataset.split("test").collate({0}, 2, 1, 0).at("input_ids")[0][1].item<std::int64_t>(), 19);
  EXPECT_EQ(dataset.split("train").collate({0}, 2, 1, 0).at("input_ids")[0][1].item<std::int64_t>(), 10);
  EXPECT_EQ(dataset.split("validation").collate({2}, 2, 1, 0).at("labels")[0].item<std::int64_t>(), 0);
}

TEST_F(DatasetTest, NamesTheSplitsThereAreWhenAskedForAnother) {
  const Dataset dataset = open({});
  try {
    (void)dataset.split("validation");
    ADD_FAILURE();
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("'validation'"), testing::HasSubstr("found train")));
  }
}

TEST_F(DatasetTest, RefusesWhatIsNoDatasetFile) {
  EXPECT_THROW((void)Dataset::open(folder_ / "none.h5"), ConfigError);
  EXPECT_THROW((void)Dataset::open(folder_), ConfigError);
  std::ofstream(path_) << "id\ttext\tlabel\n";
  EXPECT_THROW((void)Dataset::open(path_), ConfigError);
}

TEST_F(DatasetTest, RefusesAttributesThatAreMissingOrWrong) {
  for (const char* name : {"task", "label_names", "tokenizer_digest", "source_digest"}) {
    expect_refusal_after([&](StoredFile& file) { file.texts.erase(name); }, {name, "found none"});
  }
  for (const char* name : {"format_version", "num_labels", "pad_token_id", "vocab_size", "max_length"}) {
    expect_refusal_after([&](StoredFile& file) { file.numbers.erase(name); }, {name, "found none"});
    expect_refusal_after([&](StoredFile& file) { file.numbers[name] = -5; }, {name, "-5"});
  }
  expect_refusal_after([](StoredFile& file) { file.numbers["format_version"] = 2; },
                       {"format_version", "expected 1, found 2"});
  expect_refusal_after([](StoredFile& file) { file.texts["task"] = "poetry"; },
                       {"task", "one of classification, regression", "'poetry'"});
  expect_refusal_after([](StoredFile& file) { file.texts["label_names"] = "[1, 2, 3]"; },
                       {"label_names", "JSON list of texts"});
  expect_refusal_after([](StoredFile& file) { file.texts["label_names"] = "[\"a\""; },
                       {"label_names", "JSON list of texts"});
  expect_refusal_after([](StoredFile& file) { file.texts["label_names"] = "[\"a\"]"; },
                       {"label_names", "3 names", "1 names"});
  expect_refusal_after([](StoredFile& file) { file.numbers["num_labels"] = 1; }, {"num_labels", "at least 2"});
  expect_refusal_after([](StoredFile& file) { file.numbers["pad_token_id"] = 20; },
                       {"pad_token_id", "below vocab_size (20)"});
}

TEST_F(DatasetTest, RefusesArraysThatContradictEachOther) {
  using Change = std::function<void(StoredSplit&)>;
  const std::vector<std::pair<Change, std::vector<std::string>>> cases = {
      {[](StoredSplit& split) { split.input_offsets[0] = 1; }, {"train/input_offsets", "0 as the first"}},
      {[](StoredSplit& split) { split.input_offsets[1] = 7; }, {"train/input_offsets", "row 1", "7 and 6"}},
      {[](StoredSplit& split) { split.input_offsets[1] = 6; }, {"train/input_offsets", "row 1 to have at least 1"}},
      {[](StoredSplit& split) { split.input_offsets[1] = std::numeric_limits<std::int64_t>::min(); },
       {"train/input_offsets", "row 0"}},
      {[](StoredSplit& split) { split.input_offsets[3] = 17; }, {"train/input_offsets", "16 as the last", "17"}},
      {[](StoredSplit& split) { split.input_offsets = {0}; }, {"train/input_offsets", "at least one row"}},
      {[](StoredSplit& split) { split.input_ids[5] = 20; }, {"train/input_ids", "[0, 20)", "found 20"}},
      {[](StoredSplit& split) { split.input_ids[5] = -1; }, {"train/input_ids", "[0, 20)", "found -1"}},
      {[](StoredSplit& split) { split.input_ids.pop_back(); }, {"train/input_offsets", "15 as the last"}},
      {[](StoredSplit& split) { split.token_type_ids = std::vector<std::uint8_t>(15); },
       {"train/token_type_ids", "16 elements"}},
      {[](StoredSplit& split) { split.classes[2] = 3; }, {"train/labels", "[0, 3)", "3 in row 2"}},
      {[](StoredSplit& split) { split.classes[0] = -1; }, {"train/labels", "[0, 3)", "-1 in row 0"}},
      {[](StoredSplit& split) { split.classes.push_back(0); }, {"train/labels", "3 elements", "found 4"}},
      {[](StoredSplit& split) { split.labels_name = "label"; }, {"train/labels"}},
      {[](StoredSplit& split) { split.id_offsets[2] = 0; }, {"train/id_offsets", "row 1"}},
      {[](StoredSplit& split) {
         split.id_offsets = {0, 1, 4};
       },
       {"train/id_offsets", "4 elements"}},
      {[](StoredSplit& split) { split.id_bytes.pop_back(); }, {"train/id_offsets", "3 as the last"}},
  };
  for (const auto& [change, pieces] : cases) {
    expect_refusal_after([&change = change](StoredFile& file) { change(file.splits["train"]); }, pieces);
  }
}

TEST_F(DatasetTest, RefusesTargetsThatAreNotFinite) {
  StoredFile plain;
  plain.texts["task"] = "regression";
  plain.texts["label_names"] = "[]";
  plain.numbers["num_labels"] = 1;
  plain.splits["train"].targets[1] = std::numeric_limits<float>::quiet_NaN();
  expect_refusal(plain, {"train/labels", "finite", "row 1"});
}

TEST_F(DatasetTest, RefusesObjectsThatAreMissingUnknownOrOfTheWrongType) {
  StoredFile no_splits;
  no_splits.splits.clear();
  expect_refusal(no_splits, {"at least one of the groups"});
  const std::vector<std::int32_t> few = {0, 1, 2};
  expect_refusal({}, {"dev", "only the groups"},
                 [&](Hdf5File& file) { file.write("dev/input_ids", Hdf5Type::kInt32, {3}, few.data()); });
  expect_refusal({}, {"train/pixels", "only the arrays"},
                 [&](Hdf5File& file) { file.write("train/pixels", Hdf5Type::kInt32, {3}, few.data()); });
  expect_refusal({}, {"test/input_ids"},
                 [&](Hdf5File& file) { file.write("test/labels", Hdf5Type::kInt32, {3}, few.data()); });
  expect_refusal({}, {"test"}, [&](Hdf5File& file) { file.write("test", Hdf5Type::kInt32, {3}, few.data()); });
  const std::vector<float> floats = {0, 1, 2};
  expect_refusal({}, {"test/input_ids", "a list of int32"},
                 [&](Hdf5File& file) { file.write("test/input_ids", Hdf5Type::kFloat32, {3}, floats.data()); });
  expect_refusal({}, {"test/input_ids", "a list of int32", "[1, 3]"}, [&](Hdf5File& file) {
    file.write("test/input_ids", Hdf5Type::kInt32, {1, 3}, few.data());
  });
  StoredFile regression_of_classes;
  regression_of_classes.texts["task"] = "regression";
  regression_of_classes.texts["label_names"] = "[]";
  regression_of_classes.splits["train"].labels_name = "token_type_ids";
  expect_refusal(regression_of_classes, {"train/token_type_ids", "a list of uint8"});
}

}  // namespace
}  // namespace espalier::data
