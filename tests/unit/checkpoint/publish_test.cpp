// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/publish.h"

#include "common/error.h"
#include "fixture.h"

namespace fs = std::filesystem;

namespace espalier::checkpoint {
namespace {

void fill(const fs::path& folder, const std::string& contents) {
  fs::create_directories(folder);
  write_file_durably(folder / "file", contents);
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

TEST(PublishFolder, ReplacesTheOldFolderAndLeavesNothingBeside) {
  const TemporaryFolder root;
  const fs::path folder = root.path() / "a";
  fill(folder, "old");
  fill(temporary_of(folder), "new");
  publish_folder(folder);
  EXPECT_EQ(read_file(folder / "file"), "new");
  EXPECT_EQ(names_in(root.path()), std::vector<std::string>{"a"});
}

TEST(PublishFolder, PutsTheOldFolderBackWhenTheNewOneCannotCome) {
  const TemporaryFolder root;
  const fs::path folder = root.path() / "a";
  fill(folder, "old");  // and no temporary: the second rename fails
  EXPECT_THROW(publish_folder(folder), IoError);
  EXPECT_EQ(read_file(folder / "file"), "old");
  EXPECT_EQ(names_in(root.path()), std::vector<std::string>{"a"});
}

TEST(SettleLeftovers, PutsBackWhatWasAboutToBeReplacedWhenTheRunDiedBetweenTheRenames) {
  const TemporaryFolder root;
  const fs::path folder = root.path() / "a";
  fill(root.path() / "a.replaced", "old");
  fill(temporary_of(folder), "new");
  settle_leftovers(folder);
  EXPECT_EQ(read_file(folder / "file"), "old");
  EXPECT_EQ(names_in(root.path()), std::vector<std::string>{"a"});
}

TEST(SettleLeftovers, RemovesWhatWasReplacedWhenTheNewOneIsInPlace) {
  const TemporaryFolder root;
  const fs::path folder = root.path() / "a";
  fill(folder, "new");
  fill(root.path() / "a.replaced", "old");
  settle_leftovers(folder);
  EXPECT_EQ(read_file(folder / "file"), "new");
  EXPECT_EQ(names_in(root.path()), std::vector<std::string>{"a"});
}

TEST(RemovePublishedFolder, TakesTheWholeFolder) {
  const TemporaryFolder root;
  fill(root.path() / "a", "old");
  remove_published_folder(root.path() / "a");
  EXPECT_TRUE(names_in(root.path()).empty());
}

}  // namespace
}  // namespace espalier::checkpoint
