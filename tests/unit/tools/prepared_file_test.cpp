// SPDX-License-Identifier: Apache-2.0
// The file that tools/prepare.py writes is the file that data/dataset.h reads: the two sides know each other only by
// docs/dataset_format.md.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "data/dataset.h"

namespace espalier::data {
namespace {

constexpr const char* kTokenizer =
    R"({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
  "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": null,
  "post_processor": {"type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
             {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
  "model": {"type": "WordLevel", "vocab": {"?": 0, "<s>": 1, "one": 2, "two": 3, "three": 4}, "unk_token": "?"}})";

class PreparedFile : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) / ("espalier_prepared_file_test_" + std::to_string(getpid()));
    std::filesystem::create_directories(folder_ / "tokenizer");
    std::ofstream(folder_ / "tokenizer" / "tokenizer.json") << kTokenizer;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  Dataset prepare(const std::string& table, const std::string& options) {
    std::ofstream(folder_ / "t.tsv") << table;
    const std::string in = folder_.string() + "/";
    const std::string command =
        std::string(ESPALIER_PYTHON " " ESPALIER_SOURCE_DIR "/tools/prepare.py --quiet --no-header --train ") + in +
        "t.tsv --tokenizer " + in + "tokenizer --output " + in + "t.h5 --pad-token-id 0 " + options + " >" + in + "log";
    EXPECT_EQ(std::system(command.c_str()), 0) << command;
    return Dataset::open(folder_ / "t.h5");
  }

  std::filesystem::path folder_;
};

TEST_F(PreparedFile, OfClassifiedPairsReadsBack) {
  const Dataset dataset =
      prepare("one two\tthree\tno\ntwo\tone\tyes\n", "--text 0 --text-pair 1 --label 2 --max-length 6");
  EXPECT_EQ(dataset.info().task, TaskKind::kClassification);
  EXPECT_THAT(dataset.info().label_names, testing::ElementsAre("no", "yes"));
  EXPECT_EQ(dataset.info().vocab_size, 5);
  EXPECT_EQ(dataset.info().max_length, 6);
  const NamedTensors batch = dataset.split("train").collate({0, 1}, 6, 4, 0);
  const auto row = [](std::vector<std::int64_t> values) { return at::tensor(values, at::kLong); };
  EXPECT_TRUE(at::equal(batch.at("input_ids"), row({1, 2, 3, 4, 1, 3, 2, 0}).view({2, 4})));
  EXPECT_TRUE(at::equal(batch.at("attention_mask"), row({1, 1, 1, 1, 1, 1, 1, 0}).view({2, 4})));
  EXPECT_TRUE(at::equal(batch.at("token_type_ids"), row({0, 0, 0, 1, 0, 0, 1, 0}).view({2, 4})));
  EXPECT_TRUE(at::equal(batch.at("labels"), row({0, 1})));
}

TEST_F(PreparedFile, OfRatedTextsReadsBack) {
  const Dataset dataset = prepare("one\t0.5\ntwo four\t-2\n", "--text 0 --label 1 --task regression");
  EXPECT_EQ(dataset.info().task, TaskKind::kRegression);
  const NamedTensors batch = dataset.split("train").collate({1, 0}, 8, 1, 0);
  EXPECT_TRUE(at::equal(batch.at("input_ids"),
                        at::tensor(std::vector<std::int64_t>{1, 3, 0, 1, 2, 0}, at::kLong).view({2, 3})));
  EXPECT_FALSE(batch.contains("token_type_ids"));
  EXPECT_TRUE(at::equal(batch.at("labels"), at::tensor({-2.0F, 0.5F})));
}

}  // namespace
}  // namespace espalier::data
