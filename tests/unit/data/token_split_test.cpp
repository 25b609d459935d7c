// SPDX-License-Identifier: Apache-2.0
// Splits whose targets are tokens: what the loss sees of a micro-batch, and every damaged file refused by array and
// row.
#include "plain_file.h"

namespace espalier::data {
namespace {

using namespace test;
using testing::ElementsAre;

constexpr std::int64_t kIgnored = -100;

class TokenSplitTest : public PlainFileTest {
 protected:
  static PlainFile seq2seq() {
    PlainFile file;
    file.texts["task"] = "seq2seq";
    file.texts["label_names"] = R"(["no", "yes"])";
    file.train = {{"input_ids", Ids{1, 2, 3, 4, 5, 6}},
                  {"input_offsets", Ints{0, 1, 3, 6}},
                  {"target_ids", Ids{11, 12, 13, 14}},
                  {"target_offsets", Ints{0, 2, 3, 4}},
                  {"id_bytes", Bytes{'a'}},
                  {"id_offsets", Ints{0, 0, 1, 1}}};
    return file;
  }
  // Rows of 5, 3 and 4 tokens; the second has no prompt.
  static PlainFile causal() {
    PlainFile file;
    file.texts["task"] = "causal_lm";
    file.train = {{"input_ids", Ids{1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13}},
                  {"input_offsets", Ints{0, 5, 8, 12}},
                  {"prompt_lengths", Ints{2, 0, 3}},
                  {"id_bytes", Bytes{'a'}},
                  {"id_offsets", Ints{0, 0, 1, 1}}};
    return file;
  }
  // Two questions, of two and of three choices.
  static PlainFile choices() {
    PlainFile file;
    file.texts["task"] = "multiple_choice";
    file.train = {{"input_ids", Ids{1, 2, 3, 1, 4, 5, 6, 8, 9, 8, 10, 8, 11, 12}},
                  {"input_offsets", Ints{0, 3, 7, 9, 11, 14}},
                  {"prompt_lengths", Ints{1, 1, 1, 1, 1}},
                  {"choice_offsets", Ints{0, 2, 5}},
                  {"labels", Ints{1, 2}},
                  {"id_bytes", Bytes{'q', 'r'}},
                  {"id_offsets", Ints{0, 1, 2}}};
    return file;
  }
  static std::function<void(PlainFile&)> with(const std::string& name, const Array& array) {
    return [name, array](PlainFile& file) { file.train[name] = array; };
  }
  static std::function<void(PlainFile&)> without(const std::string& name) {
    return [name](PlainFile& file) { file.train.erase(name); };
  }
};

// The slow way: label tokens that a loss over shifted labels counts.
std::int64_t count_shifted(const at::Tensor& labels) {
  return labels.slice(1, 1).ne(kIgnored).sum().item<std::int64_t>();
}

TEST_F(TokenSplitTest, Seq2SeqPadsBothSidesApart) {
  const Dataset dataset = open(seq2seq());
  EXPECT_EQ(dataset.info().task, TaskKind::kSeq2Seq);
  EXPECT_THAT(dataset.info().label_names, ElementsAre("no", "yes"));
  const Split& split = dataset.split("train");
  const NamedTensors batch = split.collate({2, 0}, 16, /*pad_multiple=*/4, 0);
  ASSERT_EQ(batch.size(), 3u);
  EXPECT_THAT(values(batch.at("input_ids")), ElementsAre(4, 5, 6, 7, 1, 7, 7, 7));
  EXPECT_THAT(values(batch.at("attention_mask")), ElementsAre(1, 1, 1, 0, 1, 0, 0, 0));
  EXPECT_THAT(values(batch.at("labels")), ElementsAre(14, -100, -100, -100, 11, 12, -100, -100));
  EXPECT_EQ(split.collate({2, 0}, 16, 8, 0).at("labels").size(1), 8);
  EXPECT_EQ(split.length(0), 3);
  EXPECT_EQ(split.num_targets(0, 16), 2);
  EXPECT_EQ(split.prompt_length(2), 3);
}

TEST_F(TokenSplitTest, Seq2SeqCutsAndFixesTheInputAlone) {
  const NamedTensors batch = open(seq2seq()).split("train").collate({0, 2}, /*max_length=*/1, 1, /*fixed_length=*/5);
  EXPECT_THAT(values(batch.at("input_ids")), ElementsAre(1, 7, 7, 7, 7, 4, 7, 7, 7, 7));
  EXPECT_THAT(values(batch.at("labels")), ElementsAre(11, 12, 14, -100));
}

TEST_F(TokenSplitTest, CausalLabelsAreTheInputsAfterThePrompt) {
  const Dataset dataset = open(causal());
  EXPECT_EQ(dataset.info().task, TaskKind::kCausalLm);
  const Split& split = dataset.split("train");
  const NamedTensors batch = split.collate({0, 1}, 16, 8, 0);
  ASSERT_EQ(batch.size(), 3u);
  EXPECT_THAT(values(batch.at("input_ids")), ElementsAre(1, 2, 3, 4, 5, 7, 7, 7, 6, 8, 9, 7, 7, 7, 7, 7));
  EXPECT_THAT(values(batch.at("labels")), ElementsAre(-100, -100, 3, 4, 5, -100, -100, -100,  //
                                                      6, 8, 9, -100, -100, -100, -100, -100));
  EXPECT_EQ(split.length(2), 4);
  EXPECT_EQ(split.prompt_length(0), 2);
  EXPECT_THROW((void)split.labels("labels"), InternalError);
}

TEST_F(TokenSplitTest, GenerationGoesOnFromTheWholeRowWhereThereIsNoPrompt) {
  PlainFile blocks = causal();
  blocks.train["prompt_lengths"] = Ints{0, 0, 0};
  const Dataset dataset = open(blocks), mixed = open(causal());
  for (std::int64_t row = 0; row < 3; ++row) {
    const Split& split = dataset.split("train");
    EXPECT_EQ(split.prompt_length(row), split.length(row));
    // The loss counts such a row from its start.
    EXPECT_EQ(split.num_targets(row, 16), split.length(row) - 1);
  }
  EXPECT_EQ(mixed.split("train").prompt_length(1), 3);
  EXPECT_EQ(mixed.split("train").prompt_length(2), 3);
}

TEST_F(TokenSplitTest, TheLossMaskDecidesWhereThereIsOne) {
  PlainFile file = causal();
  file.train["loss_mask"] = Bytes{1, 1, 0, 1, 1, 0, 0, 1, 0, 0, 1, 0};
  const Dataset dataset = open(file);
  const Split& split = dataset.split("train");
  EXPECT_THAT(values(split.collate({0}, 16, 1, 0).at("labels")), ElementsAre(1, 2, -100, 4, 5));
  EXPECT_THAT(values(split.collate({2}, 16, 1, 0).at("labels")), ElementsAre(-100, -100, 12, -100));
  EXPECT_EQ(split.prompt_length(0), 2);
}

TEST_F(TokenSplitTest, TargetsAreCountedAsTheShiftedLabelsOfAnyBatchHaveThem) {
  PlainFile masked = causal();
  masked.train["loss_mask"] = Bytes{1, 1, 0, 1, 1, 0, 0, 1, 0, 0, 1, 0};
  for (const PlainFile& file : {causal(), masked}) {
    const Dataset dataset = open(file);
    const Split& split = dataset.split("train");
    for (const std::int64_t max_length : {1, 2, 3, 4, 16}) {
      std::int64_t all = 0;
      for (std::int64_t row = 0; row < split.num_rows(); ++row) {
        EXPECT_EQ(split.num_targets(row, max_length),
                  count_shifted(split.collate({row}, max_length, 8, 0).at("labels")));
        all += split.num_targets(row, max_length);
      }
      EXPECT_EQ(all, count_shifted(split.collate({0, 1, 2}, max_length, 8, 0).at("labels")));
    }
  }
}

TEST_F(TokenSplitTest, AQuestionKeepsItsChoicesInOneMicroBatch) {
  const Dataset dataset = open(choices());
  EXPECT_EQ(dataset.info().task, TaskKind::kMultipleChoice);
  const Split& split = dataset.split("train");
  EXPECT_EQ(split.num_rows(), 2);
  EXPECT_EQ(split.length(0), 7);
  const NamedTensors batch = split.collate({1, 0}, 16, 4, 0);
  EXPECT_THAT(values(batch.at("choice_offsets")), ElementsAre(0, 3, 5));
  EXPECT_THAT(values(batch.at("answers")), ElementsAre(2, 1));
  EXPECT_THAT(values(batch.at("input_ids")),
              ElementsAre(8, 9, 7, 7, 8, 10, 7, 7, 8, 11, 12, 7, 1, 2, 3, 7, 1, 4, 5, 6));
  EXPECT_THAT(values(batch.at("labels").select(0, 2).contiguous()), ElementsAre(-100, 11, 12, -100));
  EXPECT_EQ(split.num_targets(0, 16), 3);
  EXPECT_EQ(split.num_targets(1, 16), 2);
  EXPECT_THROW((void)split.prompt_length(1), InternalError);
}

TEST_F(TokenSplitTest, AChoiceIsNeverCut) {
  const Dataset dataset = open(choices());
  EXPECT_NO_THROW((void)dataset.split("train").collate({1}, 3, 8, 0));
  try {
    (void)dataset.split("train").collate({1, 0}, 3, 8, 0);
    ADD_FAILURE() << "a choice of 4 tokens was cut to 3";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr(path_.string()), testing::HasSubstr("data.max_length"),
                                             testing::HasSubstr("one of 4 in row 0")));
  }
}

TEST_F(TokenSplitTest, Seq2SeqRowsAreAsLongAsBothTheirSides) {
  PlainFile file = seq2seq();
  file.train["target_ids"] = Ids{11, 12, 13, 14, 15, 16, 17};
  file.train["target_offsets"] = Ints{0, 5, 6, 7};
  const Dataset dataset = open(file);
  const Split& split = dataset.split("train");
  EXPECT_THAT((Ints{split.length(0), split.length(1), split.length(2)}), ElementsAre(6, 3, 4));
}

TEST_F(TokenSplitTest, RefusesDamagedSeq2SeqFiles) {
  expect_refusal(seq2seq(), with("target_ids", Ids{11, 20, 13, 14}), {"train/target_ids", "[0, 20)", "20 in row 0"});
  expect_refusal(seq2seq(), with("target_offsets", Ints{0, 2, 2, 4}), {"train/target_offsets", "row 1"});
  expect_refusal(seq2seq(), with("target_offsets", Ints{0, 2, 4}), {"train/target_offsets", "4 elements", "found 3"});
  expect_refusal(seq2seq(), with("labels", Ints{0, 1, 0}), {"train/labels", "only the arrays"});
  expect_refusal(seq2seq(), without("target_ids"), {"train/target_ids"});
  expect_refusal(seq2seq(), [](PlainFile& file) { file.numbers["num_labels"] = 2; }, {"num_labels", "0 for seq2seq"});
  expect_refusal(seq2seq(), [](PlainFile& file) { file.texts["label_columns"] = R"({"size": []})"; },
                 {"label_columns", "none for seq2seq", "size"});
}

TEST_F(TokenSplitTest, RefusesDamagedCausalFiles) {
  expect_refusal(causal(), with("prompt_lengths", Ints{2, 3, 3}), {"train/prompt_lengths", "[0, 3)", "3 in row 1"});
  expect_refusal(causal(), with("prompt_lengths", Ints{2, 0, -1}), {"train/prompt_lengths", "-1 in row 2"});
  expect_refusal(causal(), with("prompt_lengths", Ints{2, 0}), {"train/prompt_lengths", "3 elements", "found 2"});
  expect_refusal(causal(), without("prompt_lengths"), {"train/prompt_lengths"});
  Bytes mask(12, 1);
  mask[6] = 2;
  expect_refusal(causal(), with("loss_mask", mask), {"train/loss_mask", "2 at token 1 of row 1"});
  expect_refusal(causal(), with("loss_mask", Bytes(11, 1)), {"train/loss_mask", "12 elements", "found 11"});
  expect_refusal(causal(), with("loss_mask", Bytes{1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1}),
                 {"train/loss_mask", "a token to predict", "none in row 1"});
  PlainFile one_token = causal();
  one_token.train["input_offsets"] = Ints{0, 5, 6, 12};
  expect_refusal(one_token, [](PlainFile&) {}, {"train/prompt_lengths", "a token to predict", "none in row 1"});
}

TEST_F(TokenSplitTest, RefusesDamagedChoices) {
  expect_refusal(choices(), with("choice_offsets", Ints{0, 1, 5}), {"train/choice_offsets", "row 0", "at least 2"});
  expect_refusal(choices(), with("choice_offsets", Ints{0, 2, 4}), {"train/choice_offsets", "5 as the last", "4"});
  expect_refusal(choices(), with("labels", Ints{2, 2}), {"train/labels", "[0, 2)", "2 in row 0"});
  expect_refusal(choices(), with("labels", Ints{1, -1}), {"train/labels", "-1 in row 1"});
  expect_refusal(choices(), with("labels", Ints{1}), {"train/labels", "2 elements", "found 1"});
  expect_refusal(choices(), with("id_offsets", Ints{0, 0, 1, 2, 2, 2}), {"train/id_offsets", "3 elements"});
  expect_refusal(choices(), without("choice_offsets"), {"train/choice_offsets"});
}

}  // namespace
}  // namespace espalier::data
