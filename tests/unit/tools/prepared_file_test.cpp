// SPDX-License-Identifier: Apache-2.0
// The file that tools/prepare.py writes is the file that data/dataset.h reads: the two sides know each other only by
// docs/dataset_format.md.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "common/hdf5_file.h"
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
    return prepare_file("t.tsv", table, "--no-header " + options);
  }

  Dataset prepare_file(const std::string& name, const std::string& content, const std::string& options) {
    std::ofstream(folder_ / name) << content;
    const std::string in = folder_.string() + "/";
    return run("--train " + in + name + " --tokenizer " + in + "tokenizer --pad-token-id 0 --eos-token-id 1 " +
               options);
  }

  Dataset run(const std::string& options) {
    const std::string in = folder_.string() + "/";
    const std::string command = ESPALIER_PYTHON " " ESPALIER_SOURCE_DIR "/tools/prepare.py --quiet --output " + in +
                                "t.h5 " + options + " >" + in + "log";
    EXPECT_EQ(std::system(command.c_str()), 0) << command;
    return Dataset::open(folder_ / "t.h5");
  }

  std::filesystem::path folder_;
};

at::Tensor row(std::vector<std::int64_t> values) {
  return at::tensor(values, at::kLong);
}

TEST_F(PreparedFile, OfClassifiedPairsReadsBack) {
  const Dataset dataset =
      prepare("one two\tthree\tno\ntwo\tone\tyes\n", "--text 0 --text-pair 1 --label 2 --max-length 6");
  EXPECT_EQ(dataset.info().task, TaskKind::kClassification);
  EXPECT_THAT(dataset.info().label_names, testing::ElementsAre("no", "yes"));
  EXPECT_EQ(dataset.info().vocab_size, 5);
  EXPECT_EQ(dataset.info().max_length, 6);
  EXPECT_THAT(dataset.info().content_digest, testing::StartsWith("sha256:"));
  const NamedTensors batch = dataset.split("train").collate({0, 1}, 6, 4, 0);
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

TEST_F(PreparedFile, OfTextsWithManyLabelsReadsBack) {
  const Dataset dataset = prepare("one\tx,y\ntwo\t\n", "--text 0 --label 1 --task multi_label");
  EXPECT_THAT(dataset.info().label_names, testing::ElementsAre("x", "y"));
  const at::Tensor labels = dataset.split("train").collate({1, 0}, 8, 1, 0).at("labels");
  EXPECT_TRUE(at::equal(labels, at::tensor({0.0F, 0.0F, 1.0F, 1.0F}).view({2, 2})));
}

TEST_F(PreparedFile, OfSeveralLabelColumnsReadsBack) {
  const Dataset dataset = prepare("one\tx\t5\ntwo\ty\t6\n", "--text 0 --label 1 --extra-label 2");
  EXPECT_THAT(dataset.info().label_columns.at("2"), testing::ElementsAre("5", "6"));
  EXPECT_TRUE(at::equal(dataset.split("train").collate({1, 0}, 8, 1, 0).at("labels_2"), row({1, 0})));
}

TEST_F(PreparedFile, OfSourcesAndTargetsReadsBack) {
  const Dataset dataset = prepare("one two\tthree\ntwo\tone two\n", "--text 0 --target 1 --task seq2seq");
  EXPECT_EQ(dataset.info().task, TaskKind::kSeq2Seq);
  const NamedTensors batch = dataset.split("train").collate({0, 1}, 8, 1, 0);
  EXPECT_TRUE(at::equal(batch.at("input_ids"), row({1, 2, 3, 1, 3, 0}).view({2, 3})));
  EXPECT_TRUE(at::equal(batch.at("labels"), row({1, 4, -100, 1, 2, 3}).view({2, 3})));
}

TEST_F(PreparedFile, OfPromptsAndAnswersReadsBack) {
  for (const auto& [loss, prompt_labels] : {std::pair("answer", row({-100, -100})), std::pair("all", row({1, 2}))}) {
    const Dataset dataset =
        prepare("one\tthree two\n", std::string("--text 0 --target 1 --task causal_lm --loss ") + loss);
    EXPECT_EQ(dataset.info().task, TaskKind::kCausalLm);
    const Split& split = dataset.split("train");
    const NamedTensors batch = split.collate({0}, 8, 4, 0);
    EXPECT_TRUE(at::equal(batch.at("input_ids"), row({1, 2, 4, 3, 1, 0, 0, 0}).view({1, 8})));
    EXPECT_TRUE(at::equal(batch.at("labels")[0], at::cat({prompt_labels, row({4, 3, 1, -100, -100, -100})})));
    EXPECT_EQ(split.prompt_length(0), 2);
    EXPECT_EQ(split.num_targets(0, 8), std::string(loss) == "all" ? 4 : 3);
  }
}

TEST_F(PreparedFile, OfQuestionsReadsBack) {
  const Dataset dataset =
      prepare_file("t.jsonl", R"([{"question": {"stem": "one", "choices": [{"label": "A", "text": "two"},
                      {"label": "B", "text": "three two"}]}, "answerKey": "B"}])",
                   "--dataset openbookqa --format json");
  EXPECT_EQ(dataset.info().task, TaskKind::kMultipleChoice);
  const NamedTensors batch = dataset.split("train").collate({0}, 8, 1, 0);
  EXPECT_TRUE(at::equal(batch.at("input_ids"), row({1, 2, 3, 0, 1, 2, 4, 3}).view({2, 4})));
  EXPECT_TRUE(at::equal(batch.at("labels"), row({-100, -100, 3, -100, -100, -100, 4, 3}).view({2, 4})));
  EXPECT_TRUE(at::equal(batch.at("choice_offsets"), row({0, 2})));
  EXPECT_TRUE(at::equal(batch.at("answers"), row({1})));
}

TEST_F(PreparedFile, OfQuestionsAboutImagesReadsBack) {
  {
    auto features = Hdf5File::create(folder_ / "features.h5");
    const std::vector<float> first = {1, 2, 3, 4, 5, 6}, second = {-1, -2, -3, -4, -5, -6}, boxes = {0, .25F, .5F, 1};
    for (const auto& [name, values] : {std::pair("one/", &first), std::pair("two/", &second)}) {
      features.write(name + std::string("features"), Hdf5Type::kFloat32, {1, 6}, values->data());
      features.write(name + std::string("boxes"), Hdf5Type::kFloat32, {1, 4}, boxes.data());
    }
    features.flush_and_close();
  }
  const Dataset dataset =
      prepare_file("t.json", R"([{"identifier": "a", "sent": "one", "label": 1, "img0": "one", "img1": "two"},
                    {"identifier": "b", "sent": "two", "label": 0, "img0": "two", "img1": "two"}])",
                   "--dataset nlvr2 --features " + (folder_ / "features.h5").string());
  EXPECT_EQ(dataset.info().task, TaskKind::kSeq2Seq);
  const NamedTensors batch = dataset.split("train").collate({1, 0}, 8, 1, 0);
  EXPECT_TRUE(at::equal(batch.at("input_ids"), row({1, 0, 3, 1, 0, 2}).view({2, 3})));
  EXPECT_EQ(batch.at("vis_feats").sizes(), at::IntArrayRef({2, 2, 6}));
  EXPECT_TRUE(at::equal(batch.at("vis_feats").select(-1, 0), at::tensor({-1.F, -1.F, 1.F, -1.F}).view({2, 2})));
  EXPECT_TRUE(at::equal(batch.at("vis_boxes")[0][0], at::tensor({0.F, .5F, .25F, 1.F})));
  EXPECT_TRUE(at::equal(batch.at("img_order_ids"), row({0, 1, 0, 1}).view({2, 2})));
  EXPECT_TRUE(at::equal(batch.at("obj_order_ids"), at::zeros({2, 2}, at::kLong)));
}

TEST_F(PreparedFile, OfImagesReadsBack) {
  const auto images = folder_ / "images";
  for (const auto& [name, bytes] : {std::pair("cat", "\x01\x02\x03\x04\x05\x06"), std::pair("dog", "abcdef")}) {
    std::filesystem::create_directories(images / name);
    std::ofstream(images / name / "1.ppm", std::ios::binary) << "P6 2 1 255\n" << bytes;
  }
  const Dataset dataset =
      run("--dataset image_folder --image-size 1 --resize crop --normalize 0,0.5,1:1,2,4 --folder " + images.string());
  EXPECT_EQ(dataset.info().task, TaskKind::kImageClassification);
  EXPECT_THAT(dataset.info().label_names, testing::ElementsAre("cat", "dog"));
  EXPECT_THAT(dataset.info().pixel_std, testing::ElementsAre(1, 2, 4));
  const NamedTensors batch = dataset.split("train").collate({1, 0}, 8, 1, 0);
  EXPECT_TRUE(at::equal(batch.at("labels"), row({1, 0})));
  // Of two pixels the crop keeps the left one: half a pixel is rounded down.
  const auto expected = at::tensor({1 / 255.0F, (2 / 255.0F - 0.5F) / 2, (3 / 255.0F - 1) / 4}).view({3, 1, 1});
  EXPECT_TRUE(at::allclose(batch.at("pixel_values")[1], expected));
}

}  // namespace
}  // namespace espalier::data
