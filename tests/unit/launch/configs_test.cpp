// SPDX-License-Identifier: Apache-2.0
// Every file in configs/ is read with the real option table. Those in configs/papers/ are planned too, on the true
// shapes of their backbones: what trains is what the file says. So are the flags in the tables of its README.
#include <gtest/gtest.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "common/durable_file.h"
#include "common/error.h"
#include "launch/objectives.h"
#include "launch/run_config.h"
#include "model/slice.h"
#include "tests/support/published_models.h"
#include "tests/support/temporary_folder.h"
#include "train/metrics.h"
#include "train/task.h"

namespace espalier::launch {
namespace {

namespace fs = std::filesystem;

const fs::path kConfigs = ESPALIER_SOURCE_DIR "/configs";
const fs::path kPapers = kConfigs / "papers";

const std::set<std::string> kReviewFiles = {
    "minilm_adapter_reviews.ini", "minilm_bitfit_reviews.ini", "minilm_full_reviews.ini",  "minilm_last_reviews.ini",
    "minilm_lora_reviews.ini",    "minilm_lst_reviews.ini",    "minilm_meft_reviews.ini",  "minilm_probe_reviews.ini",
    "minilm_prompt_reviews.ini",  "minilm_rosa_reviews.ini",   "minilm_sweep_reviews.ini",
};

const std::set<std::string> kPaperFiles = {
    "bart_large_lst_rte.ini",
    "bart_large_meft1_rte.ini",
    "bert_base_meft1_rte.ini",
    "clip_t5_lst_vqa.ini",
    "gpt2_rosa_e2e.ini",
    "opt_1.3b_meft1_openbookqa.ini",
    "opt_6.7b_meft1_openbookqa.ini",
    "roberta_base_rosa_mrpc.ini",
    "roberta_large_meft1_sst2.ini",
    "t5_3b_lst_qnli.ini",
    "t5_base_lst_rte.ini",
    "t5_large_lst_mnli.ini",
    "vit_base_last_caltech101.ini",
    "vit_base_lst_caltech101.ini",
};

/// Classes of the published datasets, by the name that their files have here; 1: a score.
const std::map<std::string, std::int64_t> kNumLabels = {
    {"cola", 2},       {"sst2", 2},         {"mrpc", 2},      {"qqp", 2},           {"mnli", 3},
    {"qnli", 2},       {"rte", 2},          {"stsb", 1},      {"cifar100", 100},    {"caltech101", 102},
    {"dtd", 47},       {"flowers102", 102}, {"pets", 37},     {"svhn", 10},         {"sun397", 397},
    {"camelyon", 2},   {"eurosat", 10},     {"resisc45", 45}, {"retinopathy", 5},   {"clevr_count", 8},
    {"clevr_dist", 6}, {"dmlab", 6},        {"kitti", 4},     {"dsprites_loc", 16}, {"dsprites_ori", 16},
    {"snorb_azi", 18}, {"snorb_ele", 9},    {"cub200", 200},  {"nabirds", 555},     {"flowers_fgvc", 102},
    {"dogs120", 120},  {"cars196", 196},
};

/// What tools/prepare.py says of the dataset at `path`, data/TASK_TOKENIZER.h5 or of images data/TASK.h5, as far as
/// the plan asks.
data::DatasetInfo describe_dataset(const fs::path& path) {
  const auto stem = path.stem().string();
  const auto tokenizer = stem.substr(std::min(stem.size(), stem.rfind('_') + 1));
  data::DatasetInfo info;
  if (tokenizer == "t5") {
    info.task = data::TaskKind::kSeq2Seq;
    return info;
  }
  if (tokenizer == "opt" || tokenizer == "gpt2") {
    info.task = data::TaskKind::kCausalLm;
    return info;
  }
  const bool is_text = tokenizer == "bert" || tokenizer == "roberta" || tokenizer == "bart";
  info.num_labels = kNumLabels.at(is_text ? stem.substr(0, stem.rfind('_')) : stem);
  info.task = !is_text               ? data::TaskKind::kImageClassification
              : info.num_labels == 1 ? data::TaskKind::kRegression
                                     : data::TaskKind::kClassification;
  return info;
}

/// "1,234,567".
std::string grouped(std::int64_t number) {
  auto digits = std::to_string(number);
  for (auto place = static_cast<std::int64_t>(digits.size()) - 3; place > 0; place -= 3) {
    digits.insert(static_cast<std::size_t>(place), ",");
  }
  return digits;
}

/// "1,234" or, of a task with weights of its own, "1,234 + 56".
std::string parts_of(const peft::TrainedCount& count) {
  return grouped(count.method) + (count.head > 0 ? " + " + grouped(count.head) : "");
}

/// The line that a file of configs/papers/ has of `count`.
std::string trained_line(const peft::TrainedCount& count) {
  return fmt::format("# Trained parameters: {}{}", grouped(count.method + count.head),
                     count.head > 0 ? fmt::format(" ({} of the task)", parts_of(count)) : "");
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    lines.push_back(line);
  }
  return lines;
}

/// What a run would train: plans model, task, layout and method from config.json alone.
/// Throws: ConfigError, and std::out_of_range for a model or dataset unknown to this test.
peft::TrainedCount plan_run(const fs::path& file, const std::vector<std::string>& flags) {
  RunConfig run;
  OptionTable table;
  describe(table, run);
  table.read_text(read_file(file), file);
  table.read_flags(flags);
  table.check_required();
  plan_objectives(table);

  const TemporaryFolder folder;
  std::ofstream(folder / "config.json") << test::published_model(fs::path(run.model.path).filename()).dump();
  const auto dataset = describe_dataset(run.data.path);
  const auto backbone = model::read_backbone(folder.path(), train::head_request(dataset, run.model.pooling));
  model::plan_stages(backbone, static_cast<int>(run.parallel.stages), run.parallel.first_blocks);
  if (run.train.best_metric != "auto") {
    train::require_metric(dataset.task, run.train.best_metric);
  }
  if (run.data.micro_batch_size > run.data.global_batch_size) {
    throw ConfigError("data.micro_batch_size: expected at most data.global_batch_size");
  }
  if (run.peft.method == "meft" && run.peft.meft.inversion == "float" && run.parallel.stages > 1) {
    throw ConfigError("peft.meft.inversion=float: expected one stage");
  }
  return peft::count_trained(run.peft, backbone);
}

std::set<std::string> files_in(const fs::path& folder) {
  std::set<std::string> found;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".ini") {
      found.insert(entry.path().filename());
    }
  }
  return found;
}

TEST(Configs, AreAllThere) {
  EXPECT_EQ(files_in(kConfigs), kReviewFiles);
  EXPECT_EQ(files_in(kPapers), kPaperFiles);
}

TEST(Configs, EveryFileIsValidAndComplete) {
  for (const auto& entry : fs::recursive_directory_iterator(kConfigs)) {
    if (entry.path().extension() != ".ini") {
      continue;
    }
    RunConfig run;
    OptionTable table;
    describe(table, run);
    EXPECT_NO_THROW(table.read_text(read_file(entry.path()), entry.path())) << entry.path();
    EXPECT_NO_THROW(table.check_required()) << entry.path();
    EXPECT_NO_THROW(plan_objectives(table)) << entry.path();
  }
}

TEST(Configs, OfPapersTrainWhatTheySayOnTheTrueBackbone) {
  for (const std::string& name : kPaperFiles) {
    SCOPED_TRACE(name);
    peft::TrainedCount count;
    ASSERT_NO_THROW(count = plan_run(kPapers / name, {}));
    EXPECT_GT(count.method, 0);
    const auto lines = lines_of(read_file(kPapers / name));
    EXPECT_EQ(std::count(lines.begin(), lines.end(), trained_line(count)), 1) << "expected one " << trained_line(count);
  }
}

TEST(Configs, OfPapersStartWithOneLine) {
  const std::regex start("# Start: mpirun -np ([0-9]+) espalier train --config configs/papers/(.+)");
  for (const std::string& name : kPaperFiles) {
    SCOPED_TRACE(name);
    RunConfig run;
    OptionTable table;
    describe(table, run);
    const auto text = read_file(kPapers / name);
    table.read_text(text, name);
    EXPECT_EQ(run.run.folder, "run/" + fs::path(name).stem().string());
    int num_starts = 0;
    for (const std::string& line : lines_of(text)) {
      if (std::smatch match; std::regex_match(line, match, start)) {
        ++num_starts;
        EXPECT_EQ(match[2], name);
        EXPECT_EQ(std::stoll(match[1]) % run.parallel.stages, 0) << "ranks that are whole replicas";
      }
    }
    EXPECT_EQ(num_starts, 1);
  }
}

/// A row of a table in configs/papers/README.md: flags for each of the files that the heading above names.
struct Variant {
  std::vector<std::string> files;
  std::string name;
  std::vector<std::string> flags;
  std::string trained;  ///< empty: as much as the file without the flags, besides what the task has
};

std::vector<Variant> read_variants() {
  const std::regex file("`([^`]+\\.ini)`");
  const std::regex row("\\| ([^|]+) \\| `(--[^`]+)` \\| *([^|]*?) *\\|");
  std::vector<Variant> variants;
  std::vector<std::string> files;
  for (const std::string& line : lines_of(read_file(kPapers / "README.md"))) {
    if (line.starts_with("#")) {
      files.clear();
      for (std::sregex_iterator match(line.begin(), line.end(), file), end; match != end; ++match) {
        files.push_back((*match)[1]);
      }
    } else if (std::smatch match; std::regex_match(line, match, row)) {
      Variant variant{files, match[1], {}, match[3]};
      std::istringstream flags(match[2]);
      for (std::string flag; flags >> flag;) {
        variant.flags.push_back(flag);
      }
      variants.push_back(variant);
    } else {
      EXPECT_FALSE(line.starts_with("|") && line.find("`--") != line.npos) << "expected a row of three cells: " << line;
    }
  }
  return variants;
}

TEST(Configs, FlagsInTheTablesOfPapersFitTheTrueBackbone) {
  std::set<std::string> covered;
  for (const Variant& variant : read_variants()) {
    ASSERT_FALSE(variant.files.empty()) << variant.name << ": expected files in the heading above";
    for (const std::string& file : variant.files) {
      SCOPED_TRACE(file + ", " + variant.name);
      covered.insert(file);
      peft::TrainedCount count, plain;
      ASSERT_NO_THROW(plain = plan_run(kPapers / file, {}));
      ASSERT_NO_THROW(count = plan_run(kPapers / file, variant.flags));
      if (variant.trained.empty()) {
        EXPECT_EQ(count.method, plain.method);
      } else {
        EXPECT_EQ(parts_of(count), variant.trained);
      }
    }
  }
  EXPECT_EQ(covered, kPaperFiles) << "every file has a table of what else is run with it";
}

}  // namespace
}  // namespace espalier::launch
