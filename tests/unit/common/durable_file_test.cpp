// SPDX-License-Identifier: Apache-2.0
#include "common/durable_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <iterator>

#include "common/error.h"
#include "temporary_folder.h"

namespace espalier {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(DurableFile, HoldsTheBytesAndNothingLiesBesideIt) {
  const TemporaryFolder folder;
  const std::string contents("line\n\0binary\xff", 13);
  write_file_durably(folder / "file", contents);
  EXPECT_EQ(read_file(folder / "file"), contents);
  write_file_durably(folder / "file", "new");
  EXPECT_EQ(read_file(folder / "file"), "new");
  write_file_durably(folder / "empty", "");
  EXPECT_EQ(read_file(folder / "empty"), "");
  EXPECT_EQ(folder.num_entries(), 2u);
}

TEST(DurableFile, ReadsFilesLargerThanOnePiece) {
  const TemporaryFolder folder;
  const std::string contents(200'001, 'x');
  write_file_durably(folder / "file", contents);
  EXPECT_EQ(read_file(folder / "file"), contents);
}

TEST(DurableFile, NamesPathAndReasonWhereTheFolderCannotBeWritten) {
  const TemporaryFolder folder;
  const auto missing = message_of<IoError>([&] { write_file_durably(folder / "absent/file", "x"); });
  EXPECT_THAT(missing, AllOf(HasSubstr("absent/file"), HasSubstr("No such file or directory")));
  write_file_durably(folder / "plain", "x");
  const auto no_folder = message_of<IoError>([&] { write_file_durably(folder / "plain/file", "x"); });
  EXPECT_THAT(no_folder, AllOf(HasSubstr("plain/file"), HasSubstr("Not a directory")));
  EXPECT_EQ(folder.num_entries(), 1u);
}

TEST(DurableFile, KeepsTheOldContentsWhenTheDiskIsFull) {
  const TemporaryFolder folder;
  write_file_durably(folder / "file", "old");
  const FullDisk full(4096);
  EXPECT_THAT(message_of<IoError>([&] { write_file_durably(folder / "file", std::string(10'000, 'x')); }),
              HasSubstr("cannot write"));
  EXPECT_EQ(read_file(folder / "file"), "old");
  EXPECT_EQ(folder.num_entries(), 1u);
}

TEST(DurableFile, LeavesNoTemporaryWhenTheRenameFails) {
  const TemporaryFolder folder;
  std::filesystem::create_directories(folder / "taken/inside");
  EXPECT_THAT(message_of<IoError>([&] { write_file_durably(folder / "taken", "x"); }), HasSubstr("cannot rename"));
  EXPECT_EQ(folder.num_entries(), 1u);
}

TEST(DurableFile, MakesAFolderAndThoseAboveIt) {
  const TemporaryFolder folder;
  make_folder_durably(folder / "a/b/c");
  make_folder_durably(folder / "a/b/c");
  make_folder_durably(folder / "a/b/d/");
  write_file_durably(folder / "a/b/file", "x");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder / "a/b"), {}), 3);
  EXPECT_THAT(message_of<IoError>([&] { make_folder_durably(folder / "a/b/file/e"); }),
              HasSubstr("a/b/file: cannot make the folder: File exists"));
}

TEST(DurableFile, RenamesFoldersWhole) {
  const TemporaryFolder folder;
  std::filesystem::create_directories(folder / "step.tmp");
  write_file_durably(folder / "step.tmp/file", "x");
  fsync_file(folder / "step.tmp/file");
  fsync_folder(folder / "step.tmp");
  rename_durably(folder / "step.tmp", folder / "step");
  EXPECT_EQ(read_file(folder / "step/file"), "x");
  std::filesystem::create_directories(folder / "other");
  rename_durably(folder / "step", folder / "other/step");
  EXPECT_EQ(read_file(folder / "other/step/file"), "x");
  EXPECT_EQ(folder.num_entries(), 1u);
}

TEST(DurableFile, EveryVerbNamesTheMissingPath) {
  const TemporaryFolder folder;
  EXPECT_THAT(message_of<IoError>([&] { read_file(folder / "absent"); }), HasSubstr("absent: cannot open"));
  EXPECT_THAT(message_of<IoError>([&] { fsync_file(folder / "absent"); }), HasSubstr("absent: cannot open"));
  EXPECT_THAT(message_of<IoError>([&] { fsync_folder(folder / "absent"); }), HasSubstr("absent: cannot open"));
  EXPECT_THAT(message_of<IoError>([&] { rename_durably(folder / "absent", folder / "new"); }),
              AllOf(HasSubstr("absent: cannot rename"), HasSubstr("/new")));
  EXPECT_THAT(message_of<IoError>([&] { read_file(folder.path()); }), HasSubstr("Is a directory"));
}

}  // namespace
}  // namespace espalier
