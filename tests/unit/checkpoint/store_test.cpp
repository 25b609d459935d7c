// SPDX-License-Identifier: Apache-2.0
// Ranks are threads. What is read back is compared bit by bit with what was given, and the manifest with hashes taken
// here.
#include "checkpoint/store.h"

#include <mutex>

#include "checkpoint/sealed_json.h"
#include "common/digest.h"
#include "common/error.h"
#include "dist/thread_communicator.h"
#include "fixture.h"

namespace fs = std::filesystem;

namespace espalier::checkpoint {
namespace {

using dist::Communicator;
using dist::run_ranks;

void save_on(int num_ranks, const fs::path& root, std::int64_t step, const NamedTensors& all, int keep = 0) {
  run_ranks(num_ranks, [&](Communicator& world) {
    CheckpointStore store(root, world, keep);
    // Only rank 0's state counts.
    const nlohmann::json state = {{"epoch", 0.5}, {"rank", world.rank()}, {"name", fmt::format("step {}", step)}};
    EXPECT_EQ(store.save(step, dealt(all, world.rank(), world.num_ranks()), state),
              root / fmt::format("step_{:08d}", step));
  });
}

/// Reads every tensor on every rank.
void expect_holds(const LoadedCheckpoint& loaded, const NamedTensors& all) {
  ASSERT_EQ(loaded.names().size(), all.size());
  for (const auto& [name, tensor] : all) {
    const at::Tensor target = at::full(tensor.sizes(), 99, tensor.options());
    loaded.read_into(name, target);
    EXPECT_TRUE(equal_bits(target, tensor)) << name;
  }
}

/// Step that load_latest gives on `num_ranks` ranks; -1 for none. All ranks must agree.
std::int64_t latest_step_on(int num_ranks, const fs::path& root) {
  std::mutex mutex;
  std::vector<std::int64_t> found;
  run_ranks(num_ranks, [&](Communicator& world) {
    CheckpointStore store(root, world, 0);
    const auto loaded = store.load_latest();
    const std::lock_guard lock(mutex);
    found.push_back(loaded ? loaded->step() : -1);
  });
  for (const std::int64_t step : found) EXPECT_EQ(step, found.front());
  return found.front();
}

class StoreOnRanks : public ::testing::TestWithParam<int> {
 protected:
  TemporaryFolder temporary_;
  fs::path root_ = temporary_.path() / "checkpoints";
};
INSTANTIATE_TEST_SUITE_P(Ranks, StoreOnRanks, ::testing::Values(1, 2, 3));

TEST_P(StoreOnRanks, GivesBackEveryTypeAndShapeBitForBitOnAnyNumberOfRanks) {
  save_on(GetParam(), root_, 7, all_tensors(1));
  for (const int num_ranks : {1, 2, 3, 4}) {
    run_ranks(num_ranks, [&](Communicator& world) {
      CheckpointStore store(root_, world, 0);
      const auto loaded = store.load_latest();
      ASSERT_NE(loaded, nullptr);
      EXPECT_EQ(loaded->step(), 7);
      EXPECT_EQ(loaded->folder(), root_ / "step_00000007");
      EXPECT_EQ(loaded->state(), (nlohmann::json{{"epoch", 0.5}, {"rank", 0}, {"name", "step 7"}}));
      expect_holds(*loaded, all_tensors(1));
    });
  }
}

TEST_P(StoreOnRanks, ListsEveryFileAndTensorWithSizesAndDigestsThatAnybodyCanCheck) {
  const NamedTensors all = all_tensors(1);
  save_on(GetParam(), root_, 7, all);
  const fs::path folder = root_ / "step_00000007";
  const nlohmann::json manifest = unseal(read_file(folder / "manifest.json"), "manifest.json");
  EXPECT_EQ(manifest.at("step"), 7);
  EXPECT_EQ(manifest.at("format_version"), 1);
  EXPECT_EQ(manifest.at("files").size(), static_cast<std::size_t>(GetParam()));
  for (const auto& [name, file] : manifest.at("files").items()) {
    EXPECT_EQ(file.at("bytes"), fs::file_size(folder / name));
    EXPECT_EQ(file.at("xxh3_128"), digest_of_file(folder / name));
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), fs::directory_iterator()), GetParam() + 1);
  ASSERT_EQ(manifest.at("tensors").size(), all.size());
  for (const auto& [name, tensor] : all) {
    const nlohmann::json& entry = manifest.at("tensors").at(name);
    const at::Tensor dense = tensor.contiguous();
    EXPECT_EQ(entry.at("shape"), nlohmann::json(tensor.sizes().vec()));
    EXPECT_EQ(entry.at("xxh3_128"), digest_of({static_cast<const char*>(dense.const_data_ptr()), dense.nbytes()}))
        << name;
  }
}

TEST_P(StoreOnRanks, FallsBackToTheOlderCheckpointForDamageInAnyFile) {
  const std::vector<std::pair<std::string, std::function<void(const fs::path&)>>> damages = {
      {"a flipped bit in the payload", [](const fs::path& file) { flip_bit(file, fs::file_size(file) - 1); }},
      {"a flipped bit at the start", [](const fs::path& file) { flip_bit(file, 0); }},
      {"a lost end", [](const fs::path& file) { fs::resize_file(file, fs::file_size(file) - 1); }},
      {"no bytes", [](const fs::path& file) { fs::resize_file(file, 0); }},
      {"no file", [](const fs::path& file) { fs::remove(file); }}};
  save_on(GetParam(), root_, 10, all_tensors(1));
  for (int rank = 0; rank < GetParam(); ++rank) {
    for (const auto& [what, damage] : damages) {
      save_on(GetParam(), root_, 20, all_tensors(2));
      ASSERT_EQ(latest_step_on(2, root_), 20);
      const fs::path file = root_ / "step_00000020" / fmt::format("rank_{:04d}.h5", rank);
      damage(file);
      for (const int num_ranks : {1, 2, 3}) EXPECT_EQ(latest_step_on(num_ranks, root_), 10) << what << " in " << file;
      run_ranks(GetParam(), [&](Communicator& world) {
        CheckpointStore store(root_, world, 0);
        expect_error<IoError>([&] { store.load(20); }, {file.string()});
        expect_holds(*store.load(10), all_tensors(1));
      });
      expect_error<IoError>([&] { open_checkpoint(root_ / "step_00000020"); }, {file.string()});
    }
  }
}

TEST_P(StoreOnRanks, FallsBackWhenTheManifestIsDamaged) {
  save_on(GetParam(), root_, 10, all_tensors(1));
  save_on(GetParam(), root_, 20, all_tensors(2));
  const fs::path file = root_ / "step_00000020" / "manifest.json";
  flip_bit(file, offset_of(file, "\"epoch\": 0.5") + 11);
  EXPECT_EQ(latest_step_on(GetParam(), root_), 10);
  fs::resize_file(file, 0);
  EXPECT_EQ(latest_step_on(GetParam(), root_), 10);
}

TEST_P(StoreOnRanks, DoesNotSeeAFolderWithoutManifestNorATemporaryOne) {
  save_on(GetParam(), root_, 10, all_tensors(1));
  save_on(GetParam(), root_, 20, all_tensors(2));
  save_on(GetParam(), root_, 30, all_tensors(2));
  fs::remove(root_ / "step_00000020" / "manifest.json");
  fs::rename(root_ / "step_00000030", root_ / "step_00000030.tmp");
  fs::create_directories(root_ / "step_40");
  EXPECT_EQ(latest_step_on(GetParam(), root_), 10);
  EXPECT_TRUE(fs::exists(root_ / "step_00000030.tmp")) << "a reader cannot know that its writer is dead";
  run_ranks(GetParam(), [&](Communicator& world) {
    CheckpointStore store(root_, world, 0);
    EXPECT_EQ(store.steps(), std::vector<std::int64_t>{10});
    expect_error<IoError>([&] { store.load(20); }, {"step_00000020", "manifest.json"});
  });
}

TEST_P(StoreOnRanks, FindsNothingInAnEmptyFolderButRefusesToStartOverDamagedCheckpoints) {
  EXPECT_EQ(latest_step_on(GetParam(), root_), -1);
  save_on(GetParam(), root_, 10, all_tensors(1));
  fs::remove(root_ / "step_00000010" / "rank_0000.h5");
  run_ranks(GetParam(), [&](Communicator& world) {
    CheckpointStore store(root_, world, 0);
    expect_error<IoError>([&] { store.load_latest(); }, {root_.string(), "rank_0000.h5", "start anew"});
  });
}

TEST_P(StoreOnRanks, KeepsTheNewestOfTheStepsUpToTheOneJustSaved) {
  for (const std::int64_t step : {10, 20, 90}) save_on(GetParam(), root_, step, all_tensors(1));
  save_on(GetParam(), root_, 30, all_tensors(1), /*keep=*/2);
  run_ranks(1, [&](Communicator& world) {
    EXPECT_EQ(CheckpointStore(root_, world, 0).steps(), (std::vector<std::int64_t>{20, 30, 90}));
  });
  EXPECT_FALSE(fs::exists(root_ / "step_00000010"));
  EXPECT_EQ(std::distance(fs::directory_iterator(root_), fs::directory_iterator()), 3);
}

TEST_P(StoreOnRanks, ReplacesACheckpointOfTheSameStep) {
  save_on(3, root_, 10, all_tensors(1));
  save_on(GetParam(), root_, 10, all_tensors(2));
  run_ranks(2, [&](Communicator& world) {
    CheckpointStore store(root_, world, 0);
    expect_holds(*store.load_latest(), all_tensors(2));
  });
  EXPECT_EQ(std::distance(fs::directory_iterator(root_), fs::directory_iterator()), 1);
}

TEST(CheckpointStore, SavesWithRanksThatHoldNothing) {
  const TemporaryFolder root;
  run_ranks(3, [&](Communicator& world) {
    CheckpointStore store(root.path(), world, 0);
    store.save(5, world.rank() == 1 ? all_tensors(1) : NamedTensors{}, {{"epoch", 1}});
    expect_holds(*store.load_latest(), all_tensors(1));
  });
  EXPECT_FALSE(fs::exists(root.path() / "step_00000005" / "rank_0000.h5"));
  EXPECT_TRUE(fs::exists(root.path() / "step_00000005" / "rank_0001.h5"));
}

TEST(CheckpointStore, RefusesANameThatTwoRanksWriteOnEveryRank) {
  const TemporaryFolder root;
  run_ranks(3, [&](Communicator& world) {
    CheckpointStore store(root.path(), world, 0);
    const NamedTensors mine = {{world.rank() == 0 ? "head.bias" : "side.0.gate", at::zeros({2})}};
    expect_error<IoError>([&] { store.save(5, mine, {}); }, {"side.0.gate", "rank_0001.h5", "rank_0002.h5"});
    world.barrier();
    EXPECT_TRUE(store.steps().empty());
  });
}

TEST(CheckpointStore, RefusesAMissingTensorAndAnotherShapeOrTypeAndLeavesTheTargetAlone) {
  const TemporaryFolder root;
  run_ranks(1, [&](Communicator& world) {
    CheckpointStore store(root.path(), world, 0);
    store.save(5, {{"head.weight", at::ones({2, 3})}}, {});
    const auto loaded = store.load(5);
    expect_error<IoError>([&] { (void)loaded->entry("head.bias"); }, {"step_00000005", "head.bias"});
    const at::Tensor transposed = at::zeros({3, 2});
    expect_error<IoError>([&] { loaded->read_into("head.weight", transposed); },
                          {"rank_0000.h5", "head.weight", "float32 [3, 2]", "float32 [2, 3]"});
    EXPECT_TRUE(at::equal(transposed, at::zeros({3, 2})));
    expect_error<IoError>(
        [&] {
          loaded->read_into("head.weight", at::zeros({2, 3}, at::kHalf));
        },
        {"head.weight", "float16 [2, 3]", "float32 [2, 3]"});
  });
}

TEST(CheckpointStore, ReadsIntoALeafThatRequiresGradAndIntoAStridedView) {
  const TemporaryFolder root;
  run_ranks(1, [&](Communicator& world) {
    CheckpointStore store(root.path(), world, 0);
    const at::Tensor value = counted({2, 3}, 1).to(at::kFloat);
    store.save(5, {{"head.weight", value.clone().requires_grad_(true)}}, {});
    const auto loaded = store.load(5);
    const at::Tensor leaf = at::zeros({2, 3}).requires_grad_(true);
    loaded->read_into("head.weight", leaf);
    EXPECT_TRUE(at::equal(leaf.detach(), value));
    EXPECT_TRUE(leaf.is_leaf());
    const at::Tensor strided = at::zeros({3, 2}).t();
    loaded->read_into("head.weight", strided);
    EXPECT_TRUE(at::equal(strided, value));
  });
}

TEST(CheckpointStore, NoticesAFileThatWasDamagedAfterItWasVerified) {
  const TemporaryFolder root;
  run_ranks(1, [&](Communicator& world) {
    CheckpointStore store(root.path(), world, 0);
    const at::Tensor value = counted({64}, 1).to(at::kFloat);
    store.save(5, {{"head.weight", value}}, {});
    const auto loaded = store.load(5);
    const fs::path file = root.path() / "step_00000005" / "rank_0000.h5";
    flip_bit(file, offset_of(file, {static_cast<const char*>(value.const_data_ptr()), value.nbytes()}) + 17);
    expect_error<IoError>([&] { loaded->read_into("head.weight", at::zeros({64})); }, {"rank_0000.h5", "head.weight"});
  });
}

TEST(CheckpointStore, RefusesATypeThatIsNotStoredByName) {
  const TemporaryFolder root;
  run_ranks(2, [&](Communicator& world) {
    CheckpointStore store(root.path(), world, 0);
    const NamedTensors mine = {
        {fmt::format("t{}", world.rank()), at::zeros({2}, world.rank() == 1 ? at::kBool : at::kFloat)}};
    expect_error<IoError>([&] { store.save(5, mine, {}); }, {"t1", "Bool"});
  });
}

class ForgedManifest : public ::testing::Test {
 protected:
  /// Saves, lets `change` edit the manifest, and seals it again.
  void forge(const std::function<void(nlohmann::json&)>& change) {
    save_on(1, root_.path(), 5, {{"a", at::ones({2})}, {"b", at::ones({2})}});
    nlohmann::json manifest = unseal(read_file(folder_ / "manifest.json"), "manifest.json");
    change(manifest);
    write_file_durably(folder_ / "manifest.json", seal(manifest));
  }
  TemporaryFolder root_;
  fs::path folder_ = root_.path() / "step_00000005";
};

TEST_F(ForgedManifest, OfANewerFormatIsRefusedNamingBothVersions) {
  forge([](nlohmann::json& manifest) { manifest["format_version"] = 2; });
  expect_error<IoError>([&] { open_checkpoint(folder_); }, {"manifest.json", "version 1", "version 2"});
}

TEST_F(ForgedManifest, ThatNamesAFileOutsideTheFolderIsRefused) {
  forge([](nlohmann::json& manifest) { manifest["files"]["../other.h5"] = manifest["files"]["rank_0000.h5"]; });
  fs::copy_file(folder_ / "rank_0000.h5", root_.path() / "other.h5");  // a good file, but not of this folder
  expect_error<IoError>([&] { open_checkpoint(folder_); }, {"../other.h5"});
}

TEST_F(ForgedManifest, WhoseTensorLiesInAnUnlistedFileIsRefused) {
  forge([](nlohmann::json& manifest) { manifest["tensors"]["b"]["file"] = "rank_0001.h5"; });
  expect_error<IoError>([&] { open_checkpoint(folder_); }, {"tensor b", "rank_0001.h5"});
}

TEST_F(ForgedManifest, WithoutAKeyIsRefusedNamingTheKey) {
  forge([](nlohmann::json& manifest) { manifest.erase("state"); });
  expect_error<IoError>([&] { open_checkpoint(folder_); }, {"manifest.json", "'state'"});
}

TEST_F(ForgedManifest, OfAnotherStepThanItsFolderIsNotTakenForThatStep) {
  forge([](nlohmann::json& manifest) { manifest["step"] = 6; });
  run_ranks(2, [&](Communicator& world) {
    CheckpointStore store(root_.path(), world, 0);
    expect_error<IoError>([&] { store.load(5); }, {"expected step 5, found 6"});
  });
}

TEST_F(ForgedManifest, WhoseShapesDisagreeWithTheFileIsRefusedWhenRead) {
  forge([](nlohmann::json& manifest) { manifest["tensors"]["b"]["shape"] = {1, 2}; });
  expect_error<IoError>(
      [&] {
        open_checkpoint(folder_)->read_into("b", at::zeros({1, 2}));
      },
      {"tensor b", "another shape"});
}

}  // namespace
}  // namespace espalier::checkpoint
