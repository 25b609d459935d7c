// SPDX-License-Identifier: Apache-2.0
// Reads the includes of every source file and fails when a folder knows what it must not (docs/architecture.md). The
// rules are a pure function of a file's path and text, so that made-up files prove the checker itself.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

const std::set<std::string> kAllFolders = {"common", "dist",       "data",  "model", "peft",
                                           "optim",  "checkpoint", "train", "launch"};

/// What a folder may include besides itself.
const std::map<std::string, std::set<std::string>> kAllowed = {
    {"common", {}},
    {"dist", {"common"}},
    {"data", {"common"}},
    {"model", {"common"}},
    {"peft", {"common", "model"}},
    {"optim", {"common"}},
    {"checkpoint", {"common", "dist", "model"}},
    {"train", {"common", "dist", "data", "model", "peft", "optim", "checkpoint"}},
    {"launch", kAllFolders},
};

const std::set<std::string> kBackendHeaders = {"mpi_communicator.h", "nccl_communicator.h", "thread_communicator.h",
                                               "solo_communicator.h"};

std::vector<std::string> includes_of(const std::string& text) {
  static const std::regex kInclude(R"(^\s*#\s*include\s*["<]([^">]+)[">])");
  std::vector<std::string> result;
  std::istringstream lines(text);
  std::smatch match;
  for (std::string line; std::getline(lines, line);) {
    if (std::regex_search(line, match, kInclude)) {
      result.push_back(match[1]);
    }
  }
  return result;
}

/// Whether a file at `path`, relative to the root, may include `header`.
bool is_allowed(const std::filesystem::path& path, const std::filesystem::path& header) {
  const std::string folder = path.begin()->string();
  const std::string first = header.begin()->string();
  if (header == "torch/torch.h") {
    return false;  // costs every file 15 s of compilation
  }
  if (kAllFolders.count(folder) == 0) {
    return true;  // tests and benchmarks may know everything else
  }
  const bool knows_backends = folder == "dist" || folder == "launch";
  const bool is_backend =
      kBackendHeaders.count(header.filename().string()) > 0 || header == "mpi.h" || header == "nccl.h";
  if (is_backend && !knows_backends) {
    return false;
  }
  const bool is_torch = first == "ATen" || first == "c10" || first == "torch";
  if (is_torch && folder == "common" && path != "common/counting_allocator.cpp") {
    return false;
  }
  if (first == "common" && folder != "common" && header.string().ends_with("_detail.h")) {
    return false;
  }
  return first == folder || kAllFolders.count(first) == 0 || kAllowed.at(folder).count(first) > 0;
}

/// "folder/file.cpp includes header" for each include that must not be.
std::vector<std::string> violations_of(const std::filesystem::path& path, const std::string& text) {
  std::vector<std::string> result;
  for (const std::string& header : includes_of(text)) {
    if (!is_allowed(path, header)) {
      result.push_back(path.string() + " includes " + header);
    }
  }
  return result;
}

std::map<std::filesystem::path, std::string> sources_below(const std::string& folder) {
  const std::filesystem::path root(ESPALIER_SOURCE_DIR);
  std::map<std::filesystem::path, std::string> sources;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root / folder)) {
    const std::string extension = entry.path().extension().string();
    if (entry.is_regular_file() &&
        (extension == ".h" || extension == ".cpp" || extension == ".cu" || extension == ".cuh")) {
      std::ifstream file(entry.path(), std::ios::binary);
      sources[entry.path().lexically_relative(root)] = {std::istreambuf_iterator<char>(file), {}};
    }
  }
  return sources;
}

TEST(Layering, NoFolderIncludesWhatItMustNotKnow) {
  std::vector<std::string> folders(kAllFolders.begin(), kAllFolders.end());
  folders.insert(folders.end(), {"tests", "benchmarks"});
  for (const std::string& folder : folders) {
    const auto sources = sources_below(folder);
    EXPECT_TRUE(!sources.empty() || folder == "benchmarks")
        << folder << " has no sources: is the list of folders outdated?";
    for (const auto& [path, text] : sources) {
      EXPECT_THAT(violations_of(path, text), IsEmpty());
    }
  }
}

TEST(Layering, EveryFolderHasItsRule) {
  for (const std::string& folder : kAllFolders) {
    EXPECT_EQ(kAllowed.count(folder), 1u) << folder;
  }
}

TEST(LayeringChecker, FindsAHigherFolderBelowALowerOne) {
  const std::string text =
      "#pragma once\n  # include \"train/trainer.h\"\n#include \"common/error.h\"\n#include <vector>\n";
  EXPECT_THAT(violations_of("model/linear.h", text), ElementsAre("model/linear.h includes train/trainer.h"));
  EXPECT_THAT(violations_of("launch/main.cpp", text), IsEmpty());
  EXPECT_THAT(violations_of("train/nested/file.cu", text), IsEmpty());
}

TEST(LayeringChecker, KeepsFoldersOfOneLevelApart) {
  EXPECT_FALSE(is_allowed("peft/lora.cpp", "dist/communicator.h"));
  EXPECT_FALSE(is_allowed("model/block.cpp", "dist/communicator.h"));
  EXPECT_FALSE(is_allowed("optim/adamw.cpp", "checkpoint/store.h"));
  EXPECT_FALSE(is_allowed("common/log.cpp", "dist/mesh.h"));
  EXPECT_TRUE(is_allowed("peft/lora.cpp", "model/linear.h"));
  EXPECT_TRUE(is_allowed("checkpoint/store.cpp", "dist/agree.h"));
}

TEST(LayeringChecker, KeepsBackendsWithinDistAndLaunch) {
  for (const char* header : {"dist/mpi_communicator.h", "dist/nccl_communicator.h", "dist/thread_communicator.h",
                             "dist/solo_communicator.h", "mpi.h", "nccl.h"}) {
    EXPECT_FALSE(is_allowed("train/trainer.cpp", header)) << header;
    EXPECT_FALSE(is_allowed("checkpoint/store.cpp", header)) << header;
    EXPECT_TRUE(is_allowed("dist/backend.cpp", header)) << header;
    EXPECT_TRUE(is_allowed("launch/main.cpp", header)) << header;
    EXPECT_TRUE(is_allowed("tests/rank/all_reduce_test.cpp", header)) << header;
  }
}

TEST(LayeringChecker, AllowsTorchNowhereAsAWholeAndInCommonOnlyForTheAllocator) {
  EXPECT_FALSE(is_allowed("tests/unit/model/linear_test.cpp", "torch/torch.h"));
  EXPECT_FALSE(is_allowed("launch/main.cpp", "torch/torch.h"));
  EXPECT_FALSE(is_allowed("common/log.h", "ATen/core/Tensor.h"));
  EXPECT_TRUE(is_allowed("common/counting_allocator.cpp", "c10/core/Allocator.h"));
  EXPECT_TRUE(is_allowed("model/linear.h", "ATen/core/Tensor.h"));
}

TEST(LayeringChecker, KeepsTheInnerHeadersOfCommonInside) {
  EXPECT_FALSE(is_allowed("data/dataset.cpp", "common/hdf5_detail.h"));
  EXPECT_TRUE(is_allowed("common/hdf5_file.cpp", "common/hdf5_detail.h"));
}

}  // namespace
