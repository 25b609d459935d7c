// SPDX-License-Identifier: Apache-2.0
// Saves that fail or are killed: every rank hears of it, and what was there before is still there.
#include <csignal>
#include <mutex>
#include <new>
#include <set>

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "checkpoint/store.h"
#include "common/error.h"
#include "dist/solo_communicator.h"
#include "dist/thread_communicator.h"
#include "fixture.h"

namespace fs = std::filesystem;

namespace espalier::checkpoint {
namespace {

using dist::Communicator;
using dist::run_ranks;

void expect_latest_is(const fs::path& root, std::int64_t step, double version) {
  dist::SoloCommunicator solo;
  CheckpointStore store(root, solo, 0);
  const auto loaded = store.load_latest();
  ASSERT_NE(loaded, nullptr);
  ASSERT_EQ(loaded->step(), step);
  const NamedTensors all = all_tensors(version);
  ASSERT_EQ(loaded->names().size(), all.size());
  for (const auto& [name, tensor] : all) {
    const at::Tensor target = at::empty(tensor.sizes(), tensor.options());
    loaded->read_into(name, target);
    EXPECT_TRUE(equal_bits(target, tensor)) << name;
  }
}

struct Fault {
  std::string action;
  int rank;
};
void PrintTo(const Fault& fault, std::ostream* out) {
  *out << fault.action << " on rank " << fault.rank;
}

class FailingSave : public ::testing::TestWithParam<Fault> {};
INSTANTIATE_TEST_SUITE_P(Actions, FailingSave,
                         ::testing::Values(Fault{"prepare", 0}, Fault{"write", 0}, Fault{"write", 2}, Fault{"sync", 1},
                                           Fault{"sync", 2}, Fault{"manifest", 0}, Fault{"commit", 0}));

TEST_P(FailingSave, ThrowsOnEveryRankLeavesTheOlderCheckpointAndCanBeRepeated) {
  const TemporaryFolder root;
  constexpr int kNumRanks = 3;
  run_ranks(kNumRanks, [&](Communicator& world) {
    CheckpointStore store(root.path(), world, /*keep=*/1);
    store.save(10, dealt(all_tensors(1), world.rank(), kNumRanks), {});
    bool fails = true;
    store.set_fault_hook([&](std::string_view action, const fs::path& path) {
      if (fails && action == GetParam().action && world.rank() == GetParam().rank) {
        throw IoError(path.string() + ": No space left on device");
      }
    });
    const NamedTensors mine = dealt(all_tensors(2), world.rank(), kNumRanks);
    expect_error<IoError>([&] { store.save(20, mine, {}); },
                          {"step_00000020", "No space left on device", fmt::format("rank {}", GetParam().rank)});
    world.barrier();
    if (world.rank() == 0) {
      EXPECT_EQ(std::distance(fs::directory_iterator(root.path()), fs::directory_iterator()), 1);
      expect_latest_is(root.path(), 10, 1);
    }
    world.barrier();
    fails = false;
    store.save(20, mine, {});
  });
  expect_latest_is(root.path(), 20, 2);
}

TEST(FailingSave, KeepsTheCauseOfAFailureThatIsNotTheFileSystems) {
  const TemporaryFolder root;
  run_ranks(2, [&](Communicator& world) {
    CheckpointStore store(root.path(), world, 0);
    const auto fail_with = [&](const auto& failure) {
      store.set_fault_hook([&world, failure](std::string_view action, const fs::path&) {
        if (action == "write" && world.rank() == 1) throw failure;
      });
    };
    const NamedTensors mine = dealt(all_tensors(1), world.rank(), 2);
    fail_with(InternalError("a defect"));
    expect_error<InternalError>([&] { store.save(10, mine, {}); }, {"rank 1", "a defect"});
    world.barrier();
    fail_with(std::bad_alloc());
    expect_error<InternalError>([&] { store.save(10, mine, {}); }, {"rank 1", "bad_alloc"});
    world.barrier();
    fail_with(fs::filesystem_error("cannot stat", std::make_error_code(std::errc::io_error)));
    expect_error<IoError>([&] { store.save(10, mine, {}); }, {"rank 1", "cannot stat"});
  });
}

TEST(FailingPrune, IsNoFailureOfTheSave) {
  const TemporaryFolder root;
  run_ranks(2, [&](Communicator& world) {
    CheckpointStore store(root.path(), world, /*keep=*/1);
    store.save(10, dealt(all_tensors(1), world.rank(), 2), {});
    store.set_fault_hook([&](std::string_view action, const fs::path&) {
      if (action == "prune") throw IoError("Permission denied");
    });
    store.save(20, dealt(all_tensors(2), world.rank(), 2), {});
    EXPECT_EQ(store.steps(), (std::vector<std::int64_t>{10, 20}));
  });
}

TEST(FailingSave, NamesEveryActionThatAFaultTestCanReach) {
  const TemporaryFolder root;
  dist::SoloCommunicator solo;
  CheckpointStore store(root.path(), solo, /*keep=*/1);
  store.save(10, all_tensors(1), {});
  std::vector<std::string> actions;
  store.set_fault_hook([&](std::string_view action, const fs::path&) { actions.emplace_back(action); });
  store.save(20, all_tensors(1), {});
  EXPECT_EQ(actions, (std::vector<std::string>{"prepare", "write", "sync", "manifest", "commit", "prune"}));
}

/// Files of this process cannot grow beyond `bytes`: the next write fails as on a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    old_handler_ = std::signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limit{bytes, old_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, old_handler_);
  }

 private:
  rlimit old_{};
  void (*old_handler_)(int) = nullptr;
};

TEST(FullDisk, IsReportedByHdf5AndLeavesTheOlderCheckpoint) {
  const TemporaryFolder root;
  run_ranks(2, [&](Communicator& world) {
    CheckpointStore store(root.path(), world, 0);
    store.save(10, dealt(all_tensors(1), world.rank(), 2), {});
    // Rank 1 writes much, rank 0 little.
    const NamedTensors mine = {{fmt::format("t{}", world.rank()), at::ones({world.rank() == 1 ? 1 << 20 : 1})}};
    world.barrier();
    std::optional<FileSizeLimit> limit;
    if (world.rank() == 0) limit.emplace(1 << 20);
    world.barrier();
    expect_error<IoError>([&] { store.save(20, mine, {}); }, {"step_00000020", "rank_0001.h5"});
    world.barrier();
    limit.reset();
    world.barrier();
    EXPECT_EQ(store.steps(), std::vector<std::int64_t>{10});
    EXPECT_FALSE(fs::exists(root.path() / "step_00000020.tmp"));
    world.barrier();  // the next save makes that folder again
    store.save(20, mine, {});
  });
  dist::SoloCommunicator solo;
  const auto loaded = CheckpointStore(root.path(), solo, 0).load(20);
  const at::Tensor target = at::zeros({1 << 20});
  loaded->read_into("t1", target);
  EXPECT_TRUE(at::equal(target, at::ones({1 << 20})));
}

/// Runs `body` in a child process and gives its wait status.
template <typename Body>
int in_child(const Body& body) {
  const pid_t child = fork();
  if (child == 0) {
    body();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

TEST(KilledSave, LeavesTheOlderCheckpointOrTheWholeNewOneWhereverItDies) {
  for (const std::string victim : {"prepare", "write", "sync", "manifest", "commit", "prune"}) {
    const TemporaryFolder root;
    dist::SoloCommunicator solo;
    CheckpointStore store(root.path(), solo, /*keep=*/1);
    store.save(10, all_tensors(1), {});
    const int status = in_child([&] {
      store.set_fault_hook([&](std::string_view action, const fs::path&) {
        if (action == victim) raise(SIGKILL);
      });
      store.save(20, all_tensors(2), {});
    });
    ASSERT_TRUE(WIFSIGNALED(status)) << victim;
    if (victim == "prune") {
      expect_latest_is(root.path(), 20, 2);
    } else {
      expect_latest_is(root.path(), 10, 1);
    }
    store.save(20, all_tensors(3), {});
    expect_latest_is(root.path(), 20, 3);
    EXPECT_EQ(std::distance(fs::directory_iterator(root.path()), fs::directory_iterator()), 1) << victim;
  }
}

TEST(KilledSave, IsSweptAwayByTheNextSaveOfAnyStep) {
  const TemporaryFolder root;
  dist::SoloCommunicator solo;
  CheckpointStore store(root.path(), solo, /*keep=*/0);
  const int status = in_child([&] {
    store.set_fault_hook([&](std::string_view action, const fs::path&) {
      if (action == "commit") raise(SIGKILL);
    });
    store.save(20, all_tensors(1), {});
  });
  ASSERT_TRUE(WIFSIGNALED(status));
  ASSERT_TRUE(fs::exists(root.path() / "step_00000020.tmp"));
  fs::create_directory(root.path() / "notes.tmp");  // not ours
  store.save(30, all_tensors(2), {});
  EXPECT_FALSE(fs::exists(root.path() / "step_00000020.tmp"));
  EXPECT_TRUE(fs::exists(root.path() / "notes.tmp"));
  expect_latest_is(root.path(), 30, 2);
}

TEST(KilledSave, NeverLeavesAPartAtRandomMoments) {
  const TemporaryFolder root;
  dist::SoloCommunicator solo;
  CheckpointStore store(root.path(), solo, /*keep=*/2);
  store.save(1, {{"t", at::full({100000}, 1.0f)}}, {});
  std::set<std::int64_t> reached;
  // A child lives longer in every round; on a busy machine twelve may all be too short.
  for (int round = 0; round < 12 || (reached.size() < 2 && round < 200); ++round) {
    const std::int64_t first = *store.steps().rbegin() + 1;
    const pid_t child = fork();
    if (child == 0) {
      for (std::int64_t step = first;; ++step)
        store.save(step, {{"t", at::full({100000}, static_cast<float>(step))}}, {});
    }
    usleep(20000 + 7001 * static_cast<useconds_t>(round));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    const auto loaded = store.load_latest();
    ASSERT_NE(loaded, nullptr);
    EXPECT_EQ(loaded->step(), *store.steps().rbegin()) << "a damaged checkpoint had a manifest";
    const at::Tensor target = at::zeros({100000});
    loaded->read_into("t", target);
    EXPECT_TRUE(at::equal(target, at::full({100000}, static_cast<float>(loaded->step()))));
    reached.insert(loaded->step());
  }
  EXPECT_GT(reached.size(), 1u) << "no child came as far as a save";
}

}  // namespace
}  // namespace espalier::checkpoint
