// SPDX-License-Identifier: Apache-2.0
// The known answers are those of the program xxh128sum.
#include "common/digest.h"

#include <gtest/gtest.h>

#include <fstream>

#include "common/durable_file.h"
#include "common/error.h"
#include "temporary_folder.h"

namespace espalier {
namespace {

std::string long_text() {
  std::string text;
  for (int i = 0; i < 40 * 256; ++i) {
    text += static_cast<char>(i % 256);
  }
  return text;
}

TEST(Digest, GivesTheKnownAnswersOfXxh3) {
  EXPECT_EQ(digest_of(""), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(digest_of("abc"), "06b05ab6733a618578af5f94892f3950");
}

TEST(Digest, DoesNotDependOnHowBytesAreCut) {
  const std::string text = long_text();
  for (const std::size_t piece : {std::size_t{1}, std::size_t{7}, std::size_t{1000}, text.size()}) {
    Digest digest;
    for (std::size_t begin = 0; begin < text.size(); begin += piece) {
      digest.update(std::string_view(text).substr(begin, piece));
    }
    EXPECT_EQ(digest.hex(), digest_of(text)) << piece;
  }
}

TEST(Digest, MayBeReadAndFedFurther) {
  Digest digest;
  digest.update(nullptr, 0);
  EXPECT_EQ(digest.hex(), digest_of(""));
  digest.update("ab");
  EXPECT_EQ(digest.hex(), digest_of("ab"));
  Digest moved = std::move(digest);
  moved.update("c", 1);
  EXPECT_EQ(moved.hex(), digest_of("abc"));
}

TEST(Digest, OfAFileIsThatOfItsBytes) {
  const TemporaryFolder folder;
  std::string text;
  while (text.size() < (3u << 20)) {  // several pieces, the last one not full
    text += long_text();
  }
  write_file_durably(folder / "bytes", text);
  EXPECT_EQ(digest_of_file(folder / "bytes"), digest_of(text));
  text[text.size() / 2] ^= 1;
  EXPECT_NE(digest_of_file(folder / "bytes"), digest_of(text));
}

TEST(Digest, OfAMissingFileNamesIt) {
  const TemporaryFolder folder;
  const auto text = message_of<IoError>([&] { digest_of_file(folder / "absent"); });
  EXPECT_NE(text.find("absent: cannot open"), std::string::npos) << text;
  EXPECT_THROW(digest_of_file(folder.path()), IoError);
}

}  // namespace
}  // namespace espalier
