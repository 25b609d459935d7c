// SPDX-License-Identifier: Apache-2.0
// Values that hold for a part of a run alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/error.h"
#include "common/options.h"
#include "temporary_folder.h"

namespace espalier {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class OptionScopes : public ::testing::Test {
 protected:
  OptionScopes() { declare(table_, rank_, shuffle_); }
  static void declare(OptionTable& table, std::int64_t& rank, bool& shuffle) {
    table.add("peft.rank", rank).at_least(1);
    table.add("data.shuffle", shuffle);
    table.add_scope({"objective", /*is_named=*/true, {"peft.", "data."}, "One of several."});
    table.add_scope({"sweep", /*is_named=*/false, {"peft."}, "All of them."});
  }
  /// "section key=text" of every value kept.
  [[nodiscard]] std::vector<std::string> kept() const {
    std::vector<std::string> texts;
    for (const ScopedValue& value : table_.scoped_values()) {
      texts.push_back(value.section + " " + value.key + "=" + value.text);
    }
    return texts;
  }

  std::int64_t rank_ = 8;
  bool shuffle_ = true;
  OptionTable table_;
};

TEST_F(OptionScopes, KeepValuesOfFileAndFlagsApartFromTheOptions) {
  table_.read_text("[objective.small]\npeft.rank = 2\n[sweep]\npeft.rank = 1 | 2\n[peft]\nrank = 4\n", "run.ini");
  table_.read_flags({"--objective.small.peft.rank=3", "--objective.Two-3.data.shuffle"});
  EXPECT_EQ(rank_, 4);
  EXPECT_TRUE(shuffle_);
  EXPECT_EQ(kept(), (std::vector<std::string>{"objective.small peft.rank=3", "sweep peft.rank=1 | 2",
                                              "objective.Two-3 data.shuffle=true"}));
  EXPECT_EQ(table_.scoped_values().front().origin, "--objective.small.peft.rank");
  EXPECT_EQ(table_.scoped_values()[1].origin, "run.ini:4");
}

TEST_F(OptionScopes, AreWrittenSoThatTheyReadBack) {
  table_.read_text("[objective.b]\npeft.rank = 2\n[objective.a]\npeft.rank = 3\ndata.shuffle = no\n", "run.ini");
  for (const std::string& text : {table_.print_config(), table_.canonical_text()}) {
    std::int64_t rank = 0;
    bool shuffle = false;
    OptionTable other;
    rank = 1;
    declare(other, rank, shuffle);
    other.read_text(text, "again");
    EXPECT_EQ(other.canonical_text(), table_.canonical_text());
  }
  EXPECT_THAT(table_.print_config(), HasSubstr("[objective.a]\npeft.rank = 3  # run.ini:4\n"));

  std::int64_t rank = 1;
  OptionTable part;
  part.add("peft.rank", rank);
  table_.read_text("[peft]\nrank = 5\n", "more.ini");
  part.take(table_);
  EXPECT_EQ(part.print_config(), "[peft]\nrank = 5  # more.ini:2\n");
}

TEST_F(OptionScopes, AreHeldToKnownOptionsAndNames) {
  const auto error_of = [&](const std::string& text) {
    return message_of<ConfigError>([&] { table_.read_text(text, "run.ini"); });
  };
  EXPECT_THAT(error_of("[objective.a]\npeft.rnak = 2\n"), AllOf(HasSubstr("run.ini:2"), HasSubstr("\"peft.rank\"")));
  EXPECT_THAT(error_of("[sweep]\ndata.shuffle = no\n"), AllOf(HasSubstr("peft."), HasSubstr("data.shuffle")));
  EXPECT_THAT(error_of("[objective.a b]\npeft.rank = 2\n"), HasSubstr("[objective.NAME]"));
  EXPECT_THAT(error_of("[objective.a]\npeft.rank = 2\npeft.rank = 3\n"), HasSubstr("run.ini:2"));
  EXPECT_THAT(message_of<ConfigError>([&] { table_.read_flags({"--objective.a.peft.rank"}); }), HasSubstr("no value"));
}

}  // namespace
}  // namespace espalier
