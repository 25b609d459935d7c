// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "common/options.h"

namespace espalier {
namespace {

using ::testing::HasSubstr;

struct Sample {
  bool flag = false;
  std::int64_t integer = -3;
  std::uint64_t large = 1;
  double number = 0.1;
  std::string text = "plain";
  std::string path = "some/where";
  std::vector<std::int64_t> integers;
  std::vector<std::string> texts = {"a", "b"};

  bool operator==(const Sample&) const = default;
};

OptionTable table_of(Sample& sample) {
  OptionTable table;
  table.add("zeta.flag", sample.flag).help("A switch | with a bar.");
  table.add("zeta.integer", sample.integer).unit("steps").at_least(-5);
  table.add("alpha.large", sample.large);
  table.add("alpha.number", sample.number);
  table.add("zeta.deep.text", sample.text);
  table.add("zeta.path", sample.path);
  table.add("alpha.integers", sample.integers);
  table.add("alpha.texts", sample.texts).choices({"a", "b", "c"});
  return table;
}

TEST(OptionPrint, ConfigShowsEveryValueWithItsProvenance) {
  Sample sample;
  OptionTable table = table_of(sample);
  table.read_text("[alpha]\nnumber = 0.25\n", "run.ini");
  table.read_flags({"--zeta.flag"});
  EXPECT_EQ(table.print_config(),
            "[zeta]\n"
            "flag = true  # --zeta.flag\n"
            "integer = -3  # default\n"
            "path = some/where  # default\n"
            "\n"
            "[alpha]\n"
            "large = 1  # default\n"
            "number = 0.25  # run.ini:2\n"
            "integers =   # default\n"
            "texts = a,b  # default\n"
            "\n"
            "[zeta.deep]\n"
            "text = plain  # default\n");
}

TEST(OptionPrint, ConfigReadsBackToTheSameValues) {
  const std::vector<std::string> odd_texts = {
      "",           " padded ",      "a # b",         "a;b",   "\"quoted\"", "back\\slash",
      "two\nlines", "tab\tinside\r", "[section] = x", "'half", "\xc3\xbc",   "# only"};
  for (const std::string& odd : odd_texts) {
    Sample written{true, -4, ~std::uint64_t{0}, 1.0 / 3.0, odd, odd, {1, -2}, {"c"}};
    Sample read;
    const OptionTable from = table_of(written);
    table_of(read).read_text(from.print_config(), "config.ini");
    EXPECT_EQ(read, written) << odd;
    Sample canonical;
    OptionTable again = table_of(canonical);
    again.read_text(from.canonical_text(), "config.ini");
    EXPECT_EQ(canonical, written) << odd;
    EXPECT_EQ(again.canonical_text(), from.canonical_text());
  }
}

TEST(OptionPrint, ANumberReadsBackToTheSameBits) {
  for (const double number : {0.1, 1e-8, 5e-324, 1.7976931348623157e308, -2.0, 3e-4, 123456789.123456789}) {
    Sample written, read;
    written.number = number;
    table_of(read).read_text(table_of(written).print_config(), "config.ini");
    EXPECT_EQ(read.number, number);
  }
}

TEST(OptionPrint, CanonicalTextIsSortedAndKnowsNoProvenance) {
  Sample by_default, by_flag;
  by_default.integer = 7;
  OptionTable flagged = table_of(by_flag);
  flagged.read_flags({"--zeta.integer=7"});
  EXPECT_EQ(flagged.canonical_text(), table_of(by_default).canonical_text());
  EXPECT_EQ(flagged.canonical_text(),
            "[alpha]\nintegers = \nlarge = 1\nnumber = 0.1\ntexts = a,b\n"
            "[zeta]\nflag = false\ninteger = 7\npath = some/where\n"
            "[zeta.deep]\ntext = plain\n");
  by_flag.integer = 8;
  EXPECT_NE(flagged.canonical_text(), table_of(by_default).canonical_text());
}

TEST(OptionPrint, HelpGroupsBySectionAndStaysWithin100Columns) {
  Sample sample;
  std::string text = "x";
  OptionTable table = table_of(sample);
  std::string long_help;
  for (int i = 0; i < 60; ++i) {
    long_help += "word" + std::to_string(i) + " ";
  }
  table.add("zeta.last", text).required().help(long_help);
  const std::string help = table.help();
  EXPECT_THAT(help, HasSubstr("[zeta]\n  --zeta.flag <bool> (default: false)\n      A switch | with a bar.\n"));
  EXPECT_THAT(help, HasSubstr("  --zeta.integer <integer> (steps; at least -5; default: -3)\n"));
  EXPECT_THAT(help, HasSubstr("  --alpha.texts <list of texts> (a | b | c; default: a,b)\n"));
  EXPECT_THAT(help, HasSubstr("  --alpha.integers <list of integers> (default: empty)\n"));
  EXPECT_THAT(help, HasSubstr("  --zeta.last <text> (required)\n      word0 word1"));
  EXPECT_THAT(help, HasSubstr("word59\n"));
  std::istringstream lines(help);
  for (std::string line; std::getline(lines, line);) {
    EXPECT_LE(line.size(), 100u) << line;
  }
}

TEST(OptionPrint, MarkdownHasATablePerSection) {
  Sample sample;
  OptionTable table = table_of(sample);
  table.read_flags({"--zeta.integer=4"});  // documents the default, not the value
  const std::string text = table.markdown();
  EXPECT_THAT(text, HasSubstr("\n## zeta\n\n| key | type | default | allowed | unit | meaning |\n"));
  EXPECT_THAT(text, HasSubstr("| `zeta.flag` | bool | `false` |  |  | A switch \\| with a bar. |\n"));
  EXPECT_THAT(text, HasSubstr("| `zeta.integer` | integer | `-3` | at least -5 | steps |  |\n"));
  EXPECT_THAT(text, HasSubstr("| `alpha.texts` | list of texts | `a,b` | `a`, `b`, `c` |  |  |\n"));
  EXPECT_THAT(text, HasSubstr("| `alpha.integers` | list of integers | empty |  |  |  |\n"));
  EXPECT_THAT(text, HasSubstr("\n## zeta.deep\n"));
}

}  // namespace
}  // namespace espalier
