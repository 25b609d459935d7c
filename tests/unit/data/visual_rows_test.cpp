// SPDX-License-Identifier: Apache-2.0
// Texts about images: three rows about two images, each of two features of width 2.
#include "plain_file.h"

namespace espalier::data {
namespace {

using namespace test;
using testing::ElementsAre;

class VisualRowsTest : public PlainFileTest {
 protected:
  static PlainFile questions() {
    PlainFile file;
    file.texts["task"] = "seq2seq";
    file.train = {{"input_ids", Ids{3, 4, 5, 6}},
                  {"input_offsets", Ints{0, 2, 3, 4}},
                  {"target_ids", Ids{8, 9, 10}},
                  {"target_offsets", Ints{0, 1, 2, 3}},
                  {"id_bytes", Bytes{}},
                  {"id_offsets", Ints{0, 0, 0, 0}},
                  {"vis_feats", Floats{1, 2, 3, 4, 5, 6, 7, 8}},
                  {"vis_boxes", Floats{0, .1F, .2F, .3F, 0, 1, 0, 1, 0, .5F, 0, .5F, .25F, .5F, .75F, 1}},
                  {"image_index", Ints{1, 0, 1}}};
    file.shapes = {{"vis_feats", {2, 2, 2}}, {"vis_boxes", {2, 2, 4}}, {"image_index", {3, 1}}};
    return file;
  }
  static PlainFile pairs() {
    auto file = questions();
    file.train["image_index"] = Ints{0, 1, 1, 0, 1, 1};
    file.shapes["image_index"] = {3, 2};
    return file;
  }
};

TEST_F(VisualRowsTest, GivesEveryRowTheFeaturesAndBoxesOfItsImage) {
  const auto batch = open(questions()).split("train").collate({2, 1}, 8, 1, 0);
  EXPECT_EQ(batch.size(), 5U);
  EXPECT_EQ(batch.at("vis_feats").scalar_type(), at::kFloat);
  EXPECT_TRUE(at::equal(batch.at("vis_feats"), at::tensor({5.F, 6.F, 7.F, 8.F, 1.F, 2.F, 3.F, 4.F}).view({2, 2, 2})));
  EXPECT_TRUE(at::equal(batch.at("vis_boxes")[1][0], at::tensor({0.F, .1F, .2F, .3F})));
  EXPECT_THAT(values(batch.at("labels")), ElementsAre(10, 9));
}

TEST_F(VisualRowsTest, PutsTheImagesOfARowOneBehindTheOtherAndNumbersThem) {
  const auto batch = open(pairs()).split("train").collate({1, 2}, 8, 1, 0);
  EXPECT_EQ(batch.at("vis_feats").sizes(), at::IntArrayRef({2, 4, 2}));
  EXPECT_TRUE(at::equal(batch.at("vis_feats")[0].flatten(), at::tensor({5.F, 6.F, 7.F, 8.F, 1.F, 2.F, 3.F, 4.F})));
  EXPECT_EQ(batch.at("vis_boxes").sizes(), at::IntArrayRef({2, 4, 4}));
  EXPECT_THAT(values(batch.at("img_order_ids")), ElementsAre(0, 0, 1, 1, 0, 0, 1, 1));
  EXPECT_THAT(values(batch.at("obj_order_ids")), ElementsAre(0, 1, 0, 1, 0, 1, 0, 1));
}

TEST_F(VisualRowsTest, MayBeWithoutBoxesAndWithReferences) {
  auto file = questions();
  file.train.erase("vis_boxes");
  file.train["reference_bytes"] = Bytes{'a', 'b', 'c', 'd'};
  file.train["reference_offsets"] = Ints{0, 1, 3, 4, 4};
  file.train["reference_row_offsets"] = Ints{0, 1, 3, 4};
  file.train["reference_scores"] = Floats{1, .5F, 1, 0};
  EXPECT_EQ(open(file).split("train").collate({0}, 8, 1, 0).count("vis_boxes"), 0U);
}

TEST_F(VisualRowsTest, RefusesArraysThatDoNotFitTogether) {
  expect_refusal(questions(),
                 [](PlainFile& file) {
                   file.train["image_index"] = Ints{1, 0, 2};
                 },
                 {"image_index", "[0, 2)", "2"});
  expect_refusal(questions(), [](PlainFile& file) { file.train["image_index"] = Ints{-1, 0, 1}; }, {"image_index"});
  expect_refusal(questions(),
                 [](PlainFile& file) {
                   file.train["image_index"] = Ints{0, 1};
                   file.shapes["image_index"] = {2, 1};
                 },
                 {"image_index", "as many rows"});
  expect_refusal(questions(), [](PlainFile& file) { file.shapes["image_index"] = {3}; }, {"image_index"});
  expect_refusal(questions(), [](PlainFile& file) { file.train.erase("image_index"); }, {"image_index"});
  expect_refusal(questions(),
                 [](PlainFile& file) {
                   file.shapes["vis_boxes"] = {1, 4, 4};
                 },
                 {"vis_boxes", "[2, 2, 4]"});
  expect_refusal(questions(),
                 [](PlainFile& file) {
                   file.shapes["vis_feats"] = {4, 2};
                 },
                 {"vis_feats", "float32 of 3 dimensions"});
  expect_refusal(questions(), [](PlainFile& file) { file.train["vis_feats"] = Ints{1, 2, 3, 4, 5, 6, 7, 8}; },
                 {"vis_feats", "float32"});
  expect_refusal(questions(), [](PlainFile& file) { file.train.erase("vis_feats"); }, {"image_index"});
  const auto refer = [](PlainFile& file) {
    file.train["reference_bytes"] = Bytes{'a', 'b'};
    file.train["reference_offsets"] = Ints{0, 1, 2};
    file.train["reference_row_offsets"] = Ints{0, 1, 2};
  };
  expect_refusal(questions(), refer, {"reference_row_offsets", "rows + 1"});
}

}  // namespace
}  // namespace espalier::data
