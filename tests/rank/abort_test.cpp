// SPDX-License-Identifier: Apache-2.0
// One rank throws while the others are blocked in a collective: the whole job must end soon, with the exit code of the
// error's class and one line that names the rank and the cause.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/fmt/fmt.h>
#include <sys/wait.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <sstream>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

struct Death {
  int exit_code = -1;
  double seconds = 0.0;  // from the failure to the end of mpirun
  std::string output;
  std::vector<std::string> abort_lines;
};

Death run_job(int num_ranks, int failing_rank, const std::string& cause) {
  const fs::path stamp =
      fs::temp_directory_path() / fmt::format("espalier_abort_{}_{}_{}", ::getpid(), num_ranks, failing_rank);
  const std::string command = fmt::format("'{}' -n {} '{}' {} {} '{}' 2>&1", ESPALIER_MPIEXEC, num_ranks,
                                          ESPALIER_ABORT_PROGRAM, failing_rank, cause, stamp.string());
  Death death;
  std::FILE* const pipe = ::popen(command.c_str(), "r");
  if (pipe == nullptr) {
    ADD_FAILURE() << "cannot start " << command;
    return death;
  }
  char buffer[4096];
  while (std::fgets(buffer, sizeof buffer, pipe) != nullptr) {
    death.output += buffer;
  }
  const int status = ::pclose(pipe);
  const auto end = fs::file_time_type::clock::now();
  death.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  if (fs::exists(stamp)) {
    death.seconds = std::chrono::duration<double>(end - fs::last_write_time(stamp)).count();
    fs::remove(stamp);
  } else {
    ADD_FAILURE() << "the job did not come to its failure:\n" << death.output;
  }
  std::istringstream lines(death.output);
  for (std::string line; std::getline(lines, line);) {
    if (line.find("[abort]") != std::string::npos) {
      death.abort_lines.push_back(line);
    }
  }
  return death;
}

void expect_clean_death(const Death& death, int exit_code, const std::string& speaker, const std::string& cause) {
  EXPECT_EQ(death.exit_code, exit_code) << death.output;
  EXPECT_LT(death.seconds, 5.0);
  ASSERT_EQ(death.abort_lines.size(), 1U) << death.output;
  EXPECT_THAT(death.abort_lines[0], HasSubstr(speaker));
  EXPECT_THAT(death.abort_lines[0], HasSubstr("the cause is " + cause));
  EXPECT_EQ(death.output.find("survived"), std::string::npos);
}

TEST(Abort, AnExceptionOnTheFirstOrLastRankEndsAllRanksWithOneLine) {
  for (const int num_ranks : {2, 3, 4}) {
    for (const int failing_rank : {0, num_ranks - 1}) {
      SCOPED_TRACE(fmt::format("rank {} of {}", failing_rank, num_ranks));
      expect_clean_death(run_job(num_ranks, failing_rank, "numeric"), 3,
                         fmt::format("rank {} of {} ends the job", failing_rank, num_ranks), "numeric");
    }
  }
}

TEST(Abort, TheExitCodeIsThatOfTheErrorsClass) {
  for (const auto& [cause, exit_code] : {std::pair("config", 2), {"comm", 4}, {"storage", 5}, {"foreign", 1}}) {
    SCOPED_TRACE(cause);
    expect_clean_death(run_job(2, 1, cause), exit_code, "rank 1 of 2 ends the job", cause);
  }
}

TEST(Abort, RankZeroSpeaksForAnErrorThatAllRanksThrowTogether) {
  expect_clean_death(run_job(3, 2, "agreed"), 5, "rank 0 of 3 ends the job", "agreed");
}

}  // namespace
