// SPDX-License-Identifier: Apache-2.0
// Images and their classes, from a file of two images of 1 x 2 pixels with 2 channels.
#include "plain_file.h"

namespace espalier::data {
namespace {

using namespace test;
using testing::ElementsAre;

class ImageSplitTest : public PlainFileTest {
 protected:
  static PlainFile images() {
    PlainFile file;
    file.texts["task"] = "image_classification";
    file.texts["label_names"] = R"(["cat", "dog"])";
    file.texts["tokenizer_digest"] = "";
    file.texts["pixel_mean"] = "[0.5, 0]";
    file.texts["pixel_std"] = "[0.5, 2]";
    file.numbers["num_labels"] = 2;
    for (const auto* name : {"vocab_size", "pad_token_id", "max_length"}) {
      file.numbers[name] = 0;
    }
    file.train = {{"pixels", Bytes{0, 51, 255, 102, 1, 2, 3, 4}},
                  {"labels", Ints{1, 0}},
                  {"id_bytes", Bytes{'a'}},
                  {"id_offsets", Ints{0, 1, 1}}};
    file.shapes["pixels"] = {2, 1, 2, 2};
    return file;
  }
};

TEST_F(ImageSplitTest, GivesNormalisedChannelsAndClasses) {
  const Dataset dataset = open(images());
  EXPECT_EQ(dataset.info().task, TaskKind::kImageClassification);
  EXPECT_EQ(to_string(dataset.info().task), "image_classification");
  EXPECT_EQ(dataset.info().vocab_size, 0);
  EXPECT_THAT(dataset.info().pixel_std, ElementsAre(0.5F, 2.0F));
  const NamedTensors batch = dataset.split("train").collate({1, 0, 1}, 8, 8, 0);
  EXPECT_EQ(batch.size(), 2U);
  EXPECT_THAT(values(batch.at("labels")), ElementsAre(0, 1, 0));
  const at::Tensor& pixels = batch.at("pixel_values");
  EXPECT_EQ(pixels.sizes(), at::IntArrayRef({3, 2, 1, 2}));
  EXPECT_EQ(pixels.scalar_type(), at::kFloat);
  EXPECT_TRUE(pixels.is_contiguous());
  // Bytes lie pixel by pixel, the batch channel by channel.
  EXPECT_TRUE(at::allclose(pixels[1], at::tensor({-1.0F, 1.0F, 0.1F, 0.2F}).view({2, 1, 2})));
  const auto normalised = [](float byte, float mean, float std) { return (byte / 255 - mean) / std; };
  EXPECT_TRUE(at::equal(pixels[0], at::tensor({normalised(1, 0.5F, 0.5F), normalised(3, 0.5F, 0.5F),
                                               normalised(2, 0, 2), normalised(4, 0, 2)})
                                       .view({2, 1, 2})));
  EXPECT_TRUE(at::equal(pixels[0], pixels[2]));
}

TEST_F(ImageSplitTest, CountsOneTargetAndOneLengthForEveryImage) {
  const Dataset dataset = open(images());
  const Split& split = dataset.split("train");
  EXPECT_EQ(split.name(), "train");
  EXPECT_EQ(split.num_rows(), 2);
  EXPECT_EQ(split.num_targets(0, 512), 1);
  EXPECT_EQ(split.length(0), split.length(1));
}

TEST_F(ImageSplitTest, GivesLabelsWithoutPixels) {
  const Dataset dataset = open(images());
  const Split& split = dataset.split("train");
  EXPECT_THAT(values(split.labels("labels")), ElementsAre(1, 0));
  split.labels("labels").fill_(0);
  EXPECT_THAT(values(split.labels("labels")), ElementsAre(1, 0)) << "what is given belongs to the caller";
  EXPECT_THROW((void)split.labels("labels_size"), InternalError);
}

TEST_F(ImageSplitTest, RefusesPixelsThatAreNotImages) {
  const auto shape = [](const std::vector<std::int64_t>& wrong) {
    return [wrong](PlainFile& file) { file.shapes["pixels"] = wrong; };
  };
  expect_refusal(images(), shape({2, 2, 2}), {"train/pixels", "uint8 of 4 dimensions", "[2, 2, 2]"});
  expect_refusal(images(), shape({0, 1, 2, 2}), {"train/pixels", "none of them 0"});
  expect_refusal(images(), shape({2, 2, 2, 1}), {"train/pixels", "2 channels", "[2, 2, 2, 1]"});
  expect_refusal(images(), [](PlainFile& file) { file.train["pixels"] = Ids{0, 1, 2, 3, 4, 5, 6, 7}; },
                 {"train/pixels", "uint8"});
  expect_refusal(images(), [](PlainFile& file) { file.train.erase("pixels"); }, {"train/pixels"});
  expect_refusal(images(), [](PlainFile& file) { file.train["input_ids"] = Ids{0}; },
                 {"train/input_ids", "only the arrays"});
}

TEST_F(ImageSplitTest, RefusesLabelsThatDoNotFitTheImages) {
  const auto labels = [](const Array& wrong) { return [wrong](PlainFile& file) { file.train["labels"] = wrong; }; };
  expect_refusal(images(), labels(Ints{1, 2}), {"train/labels", "[0, 2)", "2 in row 1"});
  expect_refusal(images(), labels(Ints{1}), {"train/labels", "2 elements", "found 1"});
  expect_refusal(images(), [](PlainFile& file) { file.train["id_offsets"] = Ints{0, 1}; }, {"train/id_offsets"});
  expect_refusal(images(), [](PlainFile& file) { file.texts["label_columns"] = R"({"size": ["a", "b"]})"; },
                 {"label_columns", "none for image_classification"});
  expect_refusal(images(), [](PlainFile& file) { file.numbers["num_labels"] = 1; }, {"num_labels", "at least 2"});
}

TEST_F(ImageSplitTest, RefusesAttributesThatAreNotOfImages) {
  const auto text = [](const std::string& name, const std::string& value) {
    return [=](PlainFile& file) { file.texts[name] = value; };
  };
  expect_refusal(images(), text("pixel_mean", "0.5"), {"pixel_mean", "one for each channel"});
  expect_refusal(images(), text("pixel_mean", R"(["a", "b"])"), {"pixel_mean", "a JSON list of numbers"});
  expect_refusal(images(), text("pixel_std", "[0.5]"), {"pixel_std", "2 channels", "found 1"});
  expect_refusal(images(), text("pixel_std", "[0.5, 0]"), {"pixel_std", "above 0"});
  expect_refusal(images(), [](PlainFile& file) { file.texts.erase("pixel_std"); }, {"pixel_std", "found none"});
  expect_refusal(images(), [](PlainFile& file) { file.numbers["vocab_size"] = 5; }, {"vocab_size", "0 for images"});
}

}  // namespace
}  // namespace espalier::data
