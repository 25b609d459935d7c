// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/sealed_json.h"

#include <gtest/gtest.h>

#include "common/error.h"

namespace espalier::checkpoint {
namespace {

TEST(SealedJson, IsPlainJsonThatComesBackAsItWas) {
  const nlohmann::json object = {{"step", 12},
                                 {"rate", 0.1},
                                 {"text", "caf\xc3\xa9 \"x\"\n"},
                                 {"list", {1, 2.5, nullptr}},
                                 {"empty", nlohmann::json::object()}};
  const std::string text = seal(object);
  EXPECT_EQ(unseal(text, "f"), object);
  nlohmann::json plain = nlohmann::json::parse(text);
  plain.erase("xxh3_128");
  EXPECT_EQ(plain, object);
}

TEST(SealedJson, NoticesEveryFlippedBit) {
  const std::string text = seal({{"step", 12}, {"rate", 0.1}});
  for (std::size_t i = 0; i < text.size() * 8; ++i) {
    std::string damaged = text;
    damaged[i / 8] = static_cast<char>(damaged[i / 8] ^ (1 << (i % 8)));
    EXPECT_THROW(unseal(damaged, "f"), IoError) << "bit " << i;
  }
}

TEST(SealedJson, NoticesEveryTruncation) {
  const std::string text = seal({{"step", 12}});
  for (std::size_t length = 0; length < text.size(); ++length) {
    EXPECT_THROW(unseal(text.substr(0, length), "f"), IoError) << length;
  }
}

TEST(SealedJson, RefusesAnUnsealedObjectNamingTheFile) {
  try {
    unseal("{\"step\": 12, \"something\": \"long enough to hold a seal, but there is none\"}", "run/manifest.json");
    FAIL();
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find("run/manifest.json"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace espalier::checkpoint
