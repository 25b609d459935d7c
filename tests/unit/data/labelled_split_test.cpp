// SPDX-License-Identifier: Apache-2.0
// Several labels a row and further label columns; classes and numbers alone are in dataset_test.cpp.
#include "plain_file.h"

#include <limits>

namespace espalier::data {
namespace {

using namespace test;
using testing::ElementsAre;

class LabelledSplitTest : public PlainFileTest {
 protected:
  static PlainFile multi_label() {
    PlainFile file;
    file.texts["task"] = "multi_label";
    file.texts["label_names"] = R"(["red", "round"])";
    file.numbers["num_labels"] = 2;
    file.num_columns = 2;
    file.train = {{"input_ids", Ids{1, 2, 3, 4, 5, 6}},
                  {"input_offsets", Ints{0, 1, 3, 6}},
                  {"id_bytes", Bytes{'a'}},
                  {"id_offsets", Ints{0, 0, 1, 1}},
                  {"labels", Floats{0, 1, 1, 1, 0, 0}}};
    return file;
  }
  static PlainFile two_columns() {
    PlainFile file = multi_label();
    file.texts["task"] = "classification";
    file.texts["label_columns"] = R"({"shade": [], "size": ["big", "small", "tiny"]})";
    file.num_columns = 0;
    file.train["labels"] = Ints{1, 0, 1};
    file.train["labels_size"] = Ints{2, 1, 0};
    file.train["labels_shade"] = Floats{0.5F, -1, 2};
    return file;
  }
};

TEST_F(LabelledSplitTest, GivesAZeroOrOneForEveryLabel) {
  const Dataset dataset = open(multi_label());
  EXPECT_EQ(dataset.info().task, TaskKind::kMultiLabel);
  const Split& split = dataset.split("train");
  const NamedTensors batch = split.collate({2, 0, 1}, 16, 4, 0);
  EXPECT_TRUE(at::equal(batch.at("labels"), at::tensor({0.0F, 0.0F, 0.0F, 1.0F, 1.0F, 1.0F}).view({3, 2})));
  EXPECT_THAT(values(batch.at("input_ids")), ElementsAre(4, 5, 6, 7, 1, 7, 7, 7, 2, 3, 7, 7));
  EXPECT_EQ(split.num_targets(0, 16), 2);
}

TEST_F(LabelledSplitTest, GivesFurtherColumnsBesideTheLabels) {
  const Dataset dataset = open(two_columns());
  EXPECT_THAT(dataset.info().label_columns.at("size"), ElementsAre("big", "small", "tiny"));
  EXPECT_TRUE(dataset.info().label_columns.at("shade").empty());
  const NamedTensors batch = dataset.split("train").collate({2, 1}, 16, 1, 0);
  EXPECT_THAT(values(batch.at("labels")), ElementsAre(1, 0));
  EXPECT_THAT(values(batch.at("labels_size")), ElementsAre(0, 1));
  EXPECT_TRUE(at::equal(batch.at("labels_shade"), at::tensor({2.0F, -1.0F})));
  EXPECT_EQ(dataset.split("train").num_targets(1, 16), 1);
}

TEST_F(LabelledSplitTest, GivesTheLabelsOfAllRowsAsABatchOfThemWould) {
  for (const PlainFile& file : {multi_label(), two_columns()}) {
    const Dataset dataset = open(file);
    const Split& split = dataset.split("train");
    for (const auto& [name, expected] : split.collate({0, 1, 2}, 16, 1, 0)) {
      if (!name.starts_with("labels")) {
        EXPECT_THROW((void)split.labels(name), InternalError);
        continue;
      }
      const at::Tensor found = split.labels(name);
      EXPECT_TRUE(at::equal(found, expected)) << name;
      EXPECT_EQ(found.scalar_type(), expected.scalar_type()) << name;
    }
    EXPECT_THROW((void)split.prompt_length(0), InternalError);
  }
  const Dataset dataset = open(two_columns());
  const DatasetInfo info = with_label_column(dataset.info(), "size");
  EXPECT_THAT(values(dataset.split("train").labels(info.label_tensor)), ElementsAre(2, 1, 0));
}

TEST_F(LabelledSplitTest, RefusesLabelsThatAreNeitherZeroNorOneByRowAndLabel) {
  const auto with = [](const Array& labels) { return [labels](PlainFile& file) { file.train["labels"] = labels; }; };
  expect_refusal(multi_label(), with(Floats{0, 1, 1, 0.5F, 0, 0}),
                 {"train/labels", "0 or 1", "0.5 for label 1 in row 1"});
  expect_refusal(multi_label(), with(Floats{0, 1, 1, std::numeric_limits<float>::quiet_NaN(), 0, 0}), {"nan"});
  expect_refusal(multi_label(), with(Floats{0, 1, 1, 1}), {"train/labels", "3 elements", "found 2"});
  expect_refusal(multi_label(), with(Ints{0, 1, 1}), {"train/labels", "[rows, 2] of float32"});
  expect_refusal(multi_label(), [](PlainFile& file) { file.num_columns = 3; }, {"train/labels", "[rows, 2]", "[2, 3]"});
  expect_refusal(multi_label(), [](PlainFile& file) { file.numbers["num_labels"] = 0; }, {"num_labels", "at least 1"});
  expect_refusal(multi_label(), [](PlainFile& file) { file.texts["label_names"] = R"(["red"])"; },
                 {"label_names", "2 names"});
}

TEST_F(LabelledSplitTest, RefusesColumnsThatDoNotFitTheirDescription) {
  const auto train = [](const std::string& name, const Array& array) {
    return [name, array](PlainFile& file) { file.train[name] = array; };
  };
  expect_refusal(two_columns(), train("labels_size", Ints{2, 3, 0}), {"train/labels_size", "[0, 3)", "3 in row 1"});
  expect_refusal(two_columns(), train("labels_size", Ints{2, 1}), {"train/labels_size", "3 elements", "found 2"});
  expect_refusal(two_columns(), train("labels_shade", Ints{2, 1, 0}), {"train/labels_shade", "a list of float32"});
  expect_refusal(two_columns(), train("labels_more", Ints{0, 0, 0}), {"train/labels_more", "only the arrays"});
  expect_refusal(two_columns(), [](PlainFile& file) { file.train.erase("labels_size"); }, {"train/labels_size"});
  const auto described = [](const std::string& text) {
    return [text](PlainFile& file) { file.texts["label_columns"] = text; };
  };
  expect_refusal(two_columns(), described(R"(["size"])"), {"label_columns", "a JSON object"});
  expect_refusal(two_columns(), described(R"({"size": [1]})"), {"label_columns", "a JSON object"});
  expect_refusal(two_columns(), described(R"({"size": )"), {"label_columns", "a JSON object"});
}

}  // namespace
}  // namespace espalier::data
