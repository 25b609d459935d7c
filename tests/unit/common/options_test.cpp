// SPDX-License-Identifier: Apache-2.0
#include "common/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/error.h"
#include "temporary_folder.h"

namespace espalier {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

struct Sample {
  bool shuffle = true;
  std::int64_t batch_size = 32;
  std::uint64_t seed = 17;
  double learning_rate = 1e-3;
  std::string schedule = "linear";
  std::string model;
  std::vector<std::int64_t> layers;
  std::vector<std::string> targets = {"query", "value"};
};

class OptionTableTest : public ::testing::Test {
 protected:
  OptionTableTest() {
    table_.add("data.shuffle", sample_.shuffle).help("Draw rows in random order.");
    table_.add("data.batch_size", sample_.batch_size).unit("rows").at_least(1);
    table_.add("train.seed", sample_.seed);
    table_.add("optimizer.learning_rate", sample_.learning_rate).above(0).below(1);
    table_.add("optimizer.schedule", sample_.schedule).choices({"linear", "cosine"});
    table_.add("model.path", sample_.model);
    table_.add("peft.lst.layers", sample_.layers).at_least(0).at_most(11);
    table_.add("peft.lora.targets", sample_.targets).choices({"query", "key", "value"});
  }
  std::string file_error(std::string_view text) {
    return message_of<ConfigError>([&] { table_.read_text(text, "run.ini"); });
  }
  std::string flag_error(const std::vector<std::string>& arguments) {
    return message_of<ConfigError>([&] { table_.read_flags(arguments); });
  }

  Sample sample_;
  OptionTable table_;
};

TEST_F(OptionTableTest, ReadsEveryTypeFromAFile) {
  table_.read_text(
      "; a comment\n"
      "# another\n"
      "[data]\r\n"
      "shuffle = no\r\n"
      "batch_size=8 ; rows\n"
      "\n"
      "[ optimizer ]  # of the trained tensors\n"
      "  learning_rate = 2.5e-4\n"
      "schedule = cosine\n"
      "[train]\n"
      "seed = 18446744073709551615\n"
      "[model]\n"
      "path = \"a # b; \\\"c\\\" \" # quoted\n"
      "[peft.lst]\n"
      "layers = 0, 3,11\n"
      "[peft]\n"
      "lora.targets = key",
      "run.ini");
  EXPECT_FALSE(sample_.shuffle);
  EXPECT_EQ(sample_.batch_size, 8);
  EXPECT_EQ(sample_.learning_rate, 2.5e-4);
  EXPECT_EQ(sample_.schedule, "cosine");
  EXPECT_EQ(sample_.seed, ~std::uint64_t{0});
  EXPECT_EQ(sample_.model, "a # b; \"c\" ");
  EXPECT_THAT(sample_.layers, ElementsAre(0, 3, 11));
  EXPECT_THAT(sample_.targets, ElementsAre("key"));
}

TEST_F(OptionTableTest, ReadsEveryTypeFromFlags) {
  table_.read_flags({"--data.shuffle=false", "--data.batch_size", "8", "--optimizer.learning_rate=1e-5", "--train.seed",
                     "0", "--optimizer.schedule", "cosine", "--model.path=--odd=name", "--peft.lst.layers", "1,2",
                     "--peft.lora.targets="});
  EXPECT_FALSE(sample_.shuffle);
  EXPECT_EQ(sample_.batch_size, 8);
  EXPECT_EQ(sample_.learning_rate, 1e-5);
  EXPECT_EQ(sample_.seed, 0u);
  EXPECT_EQ(sample_.schedule, "cosine");
  EXPECT_EQ(sample_.model, "--odd=name");
  EXPECT_THAT(sample_.layers, ElementsAre(1, 2));
  EXPECT_TRUE(sample_.targets.empty());
}

TEST_F(OptionTableTest, ABareBoolFlagMeansTrueAndMayTakeTheNextWord) {
  sample_.shuffle = false;
  table_.read_flags({"--data.shuffle", "--train.seed=3"});
  EXPECT_TRUE(sample_.shuffle);
  table_.read_flags({"--data.shuffle", "off"});
  EXPECT_FALSE(sample_.shuffle);
  EXPECT_THAT(flag_error({"--data.shuffle", "maybe"}), HasSubstr("expected a flag"));
  EXPECT_THAT(flag_error({"--data.shuffle=maybe"}), HasSubstr("expected true or false, found \"maybe\""));
}

TEST_F(OptionTableTest, ANegativeNumberIsAValueNoFlag) {
  std::int64_t steps = 0;
  table_.add("train.steps", steps);
  table_.read_flags({"--train.steps", "-1"});
  EXPECT_EQ(steps, -1);
}

TEST_F(OptionTableTest, AFlagWinsOverTheFileAndTheFileOverTheDefault) {
  table_.read_text("[train]\nseed = 1\n[data]\nbatch_size = 4\n", "run.ini");
  table_.read_flags({"--train.seed=2"});
  EXPECT_EQ(sample_.seed, 2u);
  EXPECT_EQ(table_.find("train.seed")->origin(), "--train.seed");
  EXPECT_EQ(table_.find("train.seed")->source(), OptionSource::kFlag);
  EXPECT_EQ(table_.find("data.batch_size")->origin(), "run.ini:4");
  EXPECT_EQ(table_.find("data.batch_size")->source(), OptionSource::kFile);
  EXPECT_EQ(table_.find("data.shuffle")->origin(), "default");
  EXPECT_EQ(table_.find("data.absent"), nullptr);
}

TEST_F(OptionTableTest, AnUnknownKeyGetsTheNearestKnownOne) {
  EXPECT_THAT(file_error("[optimizer]\n\nlearning_rte = 1\n"),
              AllOf(StartsWith("run.ini:3: "), HasSubstr("\"optimizer.learning_rte\""),
                    HasSubstr("\"optimizer.learning_rate\"")));
  EXPECT_THAT(flag_error({"--optimiser.schedul=cosine"}),
              AllOf(StartsWith("--optimiser.schedul: "), HasSubstr("\"optimizer.schedule\"")));
  // The right word in the wrong section, or in none.
  EXPECT_THAT(flag_error({"--train.learning_rate=1"}), HasSubstr("nearest is \"optimizer.learning_rate\""));
  EXPECT_THAT(flag_error({"--batch_size=1"}), HasSubstr("nearest is \"data.batch_size\""));
  EXPECT_THAT(file_error("seed = 3\n"), HasSubstr("nearest is \"train.seed\""));
}

TEST_F(OptionTableTest, AnUnknownSectionGetsTheNearestKnownOneEvenWhenEmpty) {
  EXPECT_THAT(file_error("[data]\n[optimzer]\n"), AllOf(StartsWith("run.ini:2: "), HasSubstr("[optimizer]")));
}

TEST_F(OptionTableTest, MalformedLinesNameFileAndLine) {
  EXPECT_THAT(file_error("[data]\nshuffle\n"), AllOf(StartsWith("run.ini:2: "), HasSubstr("key = value")));
  EXPECT_THAT(file_error("[data\n"), AllOf(StartsWith("run.ini:1: "), HasSubstr("[section]")));
  EXPECT_THAT(file_error("[data] shuffle = 1\n"), HasSubstr("[section]"));
  EXPECT_THAT(file_error("[model]\npath = \"open\n"), AllOf(StartsWith("run.ini:2: "), HasSubstr("closing quote")));
  EXPECT_THAT(file_error("[model]\npath = \"a\" b\n"), HasSubstr("behind the closing quote"));
  EXPECT_THAT(file_error("[]\n"), HasSubstr("known section"));
}

TEST_F(OptionTableTest, TwiceIsAnErrorWithinOneSource) {
  EXPECT_THAT(file_error("[train]\nseed = 1\n[data]\n[train]\nseed = 1\n"),
              AllOf(StartsWith("run.ini:5: "), HasSubstr("train.seed"), HasSubstr("run.ini:2")));
  EXPECT_THAT(flag_error({"--train.seed=1", "--train.seed", "1"}),
              AllOf(StartsWith("--train.seed: "), HasSubstr("once")));
}

TEST_F(OptionTableTest, ValuesOfTheWrongTypeAreRefusedAndChangeNothing) {
  EXPECT_EQ(file_error("[data]\nbatch_size = many\n"),
            "run.ini:2: data.batch_size: expected an integer, at least 1, found \"many\"");
  for (const char* text : {"", "1.5", "8 rows", "1e3", "0x10", "9223372036854775808", "+"}) {
    EXPECT_THAT(flag_error({std::string("--data.batch_size=") + text}), HasSubstr("expected an integer")) << text;
  }
  for (const char* text : {"", "nan", "inf", "0.1x", "0,1"}) {
    EXPECT_THAT(flag_error({std::string("--optimizer.learning_rate=") + text}), HasSubstr("expected a number")) << text;
  }
  EXPECT_THAT(flag_error({"--train.seed=-1"}), HasSubstr("expected an unsigned integer, found \"-1\""));
  for (const char* text : {"1,,2", "1,", ",1", "1;2", "a"}) {
    EXPECT_THAT(flag_error({std::string("--peft.lst.layers=") + text}), HasSubstr("expected a list of integers"))
        << text;
  }
  EXPECT_EQ(sample_.batch_size, 32);
  EXPECT_EQ(sample_.learning_rate, 1e-3);
  EXPECT_EQ(table_.find("data.batch_size")->origin(), "default");
}

TEST_F(OptionTableTest, BoundsHoldForNumbersAndForEveryElement) {
  EXPECT_THAT(flag_error({"--data.batch_size=0"}), HasSubstr("at least 1, found \"0\""));
  EXPECT_THAT(flag_error({"--optimizer.learning_rate=0"}), HasSubstr("above 0 and below 1"));
  EXPECT_THAT(flag_error({"--optimizer.learning_rate=1"}), HasSubstr("above 0 and below 1"));
  EXPECT_THAT(flag_error({"--peft.lst.layers=0,12"}), HasSubstr("each at least 0 and at most 11"));
  table_.read_flags({"--peft.lst.layers=0,11", "--data.batch_size=1"});
  EXPECT_THAT(sample_.layers, ElementsAre(0, 11));
}

TEST_F(OptionTableTest, ChoicesHoldForTextsAndForEveryElement) {
  EXPECT_EQ(flag_error({"--optimizer.schedule=Linear"}),
            "--optimizer.schedule: expected one of linear, cosine, found \"Linear\"");
  EXPECT_THAT(flag_error({"--peft.lora.targets=query,output"}), HasSubstr("a list out of query, key, value"));
}

TEST_F(OptionTableTest, NothingOnTheCommandLineStaysUnread) {
  EXPECT_THAT(flag_error({"run.ini"}), HasSubstr("found \"run.ini\""));
  EXPECT_THAT(flag_error({"-s"}), HasSubstr("found \"-s\""));
  EXPECT_THAT(flag_error({"--"}), HasSubstr("known option"));
  EXPECT_THAT(flag_error({"--train.seed"}), HasSubstr("--train.seed=VALUE"));
  EXPECT_THAT(flag_error({"--train.seed", "--data.shuffle"}), HasSubstr("--train.seed=VALUE"));
}

TEST_F(OptionTableTest, RequiredOptionsAreListedUntilGiven) {
  std::string task, output;
  table_.add("run.task", task).choices({"a", "b"}).required().help("What to learn.");
  table_.add("run.folder", output).required();
  const auto both = message_of<ConfigError>([&] { table_.check_required(); });
  EXPECT_THAT(both, AllOf(HasSubstr("--run.task (one of a, b): What to learn."), HasSubstr("--run.folder")));
  table_.read_text("[run]\ntask = a\n", "run.ini");
  const auto one = message_of<ConfigError>([&] { table_.check_required(); });
  EXPECT_THAT(one, AllOf(HasSubstr("--run.folder"), Not(HasSubstr("--run.task"))));
  table_.read_flags({"--run.folder=out"});
  EXPECT_NO_THROW(table_.check_required());
}

TEST(OptionDeclaration, DefectsOfADeclarationAreFoundAtOnce) {
  OptionTable table;
  std::int64_t number = 0;
  std::string text = "x";
  table.add("a.b", number);
  EXPECT_THROW(table.add("a.b", number), InternalError);
  EXPECT_THROW(table.add(".nosection", number), InternalError);
  EXPECT_THROW(table.add("a.", number), InternalError);
  EXPECT_THROW(table.add("A.b", number), InternalError);
  EXPECT_THROW(table.add("a.c", number).at_least(1), InternalError);
  EXPECT_THROW(table.add("a.d", text).choices({"y", "z"}), InternalError);
}

}  // namespace
}  // namespace espalier
