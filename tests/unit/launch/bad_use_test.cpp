// SPDX-License-Identifier: Apache-2.0
// Wrong runs, adapters, datasets and arrays, given to evaluate, predict, export and inspect as a user would.
#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <cstdlib>
#include <numeric>

#include "bad_input.h"
#include "common/durable_file.h"
#include "program.h"
#include "temporary_folder.h"
#include "tiny_dataset.h"

namespace espalier::test {
namespace {

namespace fs = std::filesystem;

/// An array of one number.
void write_ids(Hdf5File& file, const std::string& name, const std::vector<std::int64_t>& shape, std::int64_t id) {
  const auto num = std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
  const std::vector<std::int64_t> ids(static_cast<std::size_t>(num), id);
  file.write(name, Hdf5Type::kInt64, shape, ids.data());
}

const Case kUseCases[] = {
    {"UnknownSplit",
     [](Setting& s) {
       s.train();
       s.on_run("evaluate", {"--split=dev"});
     },
     kConfigCode,
     {"dev", "validation"}},
    {"AdapterDamaged",
     [](Setting& s) {
       s.train();
       damage_file(s.root / "run/adapter/adapter.safetensors", 4000, "damaged!");
       s.on_run("evaluate");
     },
     kStorageCode,
     {"adapter"}},
    {"AdapterOfAnotherBackbone",
     [](Setting& s) {
       s.train();
       change_weights(s, [](auto& t) { t.begin()->second += 1; });
       s.on_run("evaluate");
     },
     kConfigCode,
     {"adapter", "digest"}},
    {"RunFolderAbsent",
     [](Setting& s) {
       s.arguments = {"evaluate", "--run=" + (s.root / "nowhere").string()};
     },
     kConfigCode,
     {"nowhere"}},
    {"ExportWithoutCheckpoint",
     [](Setting& s) {
       s.train();
       fs::remove_all(s.root / "run/checkpoints");
       s.exports({});
     },
     kConfigCode,
     {"checkpoint", "train first", "--run"}},
    {"ExportFromAFolderThatIsNoRun", [](Setting& s) { s.exports({}); }, kConfigCode, {"--run", "run/config.ini"}},
    {"ExportOfAStepThatIsNotThere",
     [](Setting& s) {
       s.train();
       s.exports({"--step=7"});
     },
     kConfigCode,
     {"--step", "(2)", "found 7"}},
    {"ExportOntoAChangedBackbone",
     [](Setting& s) {
       s.train();
       change_weights(s, [](auto& t) { t.begin()->second += 1; });
       s.exports({"--weights=last"});
     },
     kConfigCode,
     {"step_00000002", "digest", "--model.path"}},
    {"ExportWithAnotherDataset",
     [](Setting& s) {
       s.train();
       write_tiny_dataset({.seed = 2}, s.dataset);
       s.exports({"--weights=last"});
     },
     kConfigCode,
     {"step_00000002", "digest", "--data.path"}},
    {"ExportOfTheBestWhereNoneIsKept",
     [](Setting& s) {
       s.add("--train.restore_best=false");
       s.add("--train.evaluate_every_steps=1");
       s.train();
       s.exports({});
     },
     kConfigCode,
     {"best evaluation", "train.restore_best=false", "--weights=last"}},
    {"ExportTypeOfAnotherFormat",
     [](Setting& s) { s.exports({"--type=bf16"}); },
     kConfigCode,
     {"--type", "--format=merged"}},
    {"ExportShardsOfAnotherFormat",
     [](Setting& s) {
       s.exports({"--format=peft", "--shard_bytes=9000"});
     },
     kConfigCode,
     {"--shard_bytes", "--format=peft"}},
    {"InspectNothing",
     [](Setting& s) {
       s.arguments = {"inspect", (s.root / "nothing").string()};
     },
     kConfigCode,
     {"nothing"}},
    {"PredictWithoutOutput",
     [](Setting& s) {
       s.arguments = {"predict", "--model.path=" + s.model.string(), "--data.path=" + s.dataset.string()};
     },
     kConfigCode,
     {"--output"}},
    {"PredictUnknownArray",
     [](Setting& s) {
       s.predicts([](Hdf5File& file) {
         write_ids(file, "input_ids", {2, 3}, 4);
         write_ids(file, "pixel_values", {2, 3}, 4);
       });
     },
     kConfigCode,
     {"in.h5", "pixel_values"}},
    {"PredictIdsThatAreFractions",
     [](Setting& s) {
       s.predicts([](Hdf5File& file) {
         const std::vector<float> ids(6, 4.5F);
         file.write("input_ids", Hdf5Type::kFloat32, {2, 3}, ids.data());
       });
     },
     kConfigCode,
     {"in.h5", "input_ids", "whole numbers"}},
    {"PredictLabelAboveTheHead",
     [](Setting& s) {
       s.predicts([](Hdf5File& file) {
         write_ids(file, "input_ids", {2, 3}, 4);
         write_ids(file, "labels", {2}, 2);
       });
     },
     kConfigCode,
     {"in.h5", "labels", "from 0 to 1"}},
    {"PredictLabelsThatAreFractions",
     [](Setting& s) {
       s.predicts([](Hdf5File& file) {
         write_ids(file, "input_ids", {2, 3}, 4);
         const std::vector<float> labels(2, 0.5F);
         file.write("labels", Hdf5Type::kFloat32, {2}, labels.data());
       });
     },
     kConfigCode,
     {"in.h5", "labels", "fraction"}},
    {"PredictASplitAndArrays",
     [](Setting& s) {
       s.predicts([](Hdf5File& file) { write_ids(file, "input_ids", {2, 3}, 4); }, {"--split=test"});
     },
     kConfigCode,
     {"--split", "--inputs"}},
    {"PredictIntoAFolderThatIsAbsent",
     [](Setting& s) {
       s.predicts(
           [](Hdf5File& file) {
             write_ids(file, "input_ids", {2, 3}, 4);
           },
           {"--output=" + (s.root / "none/out.h5").string()});
       std::erase(s.arguments, "--output=" + (s.root / "out.h5").string());
     },
     kConfigCode,
     {"--output", "none"}},
    {"EvaluateWithAnOptionOfTraining",
     [](Setting& s) {
       s.train();
       s.on_run("evaluate", {"--optimizer.learning_rate=7"});
     },
     kConfigCode,
     {"optimizer.learning_rate"}},
    {"EvaluateOnMoreClassesThanTheHeadHas",
     [](Setting& s) {
       s.train();
       write_tiny_dataset({.num_labels = 5}, s.dataset);
       s.on_run("evaluate");
     },
     kConfigCode,
     {"data.h5", "2 labels", "found 5"}},
    {"EvaluateANumberWithAHeadOfClasses",
     [](Setting& s) {
       s.train();
       write_tiny_dataset({.task = "regression"}, s.dataset);
       s.on_run("evaluate");
     },
     kConfigCode,
     {"data.h5", "classification", "found regression"}},
    {"EvaluateClassesInAnotherOrder",
     [](Setting& s) {
       s.train();
       auto bytes = read_file(s.dataset);
       const std::string names = R"("label0", "label1")";
       bytes.replace(bytes.find(names), names.size(), R"("label1", "label0")");
       write_file_durably(s.dataset, bytes);
       s.on_run("evaluate");
     },
     kConfigCode,
     {"data.h5", "label0, label1", "found label1, label0", "--label-names"}},
    {"EvaluateARunThatHasNotEnded",
     [](Setting& s) {
       s.train();
       fs::remove_all(s.root / "run/adapter");
       s.on_run("evaluate");
     },
     kConfigCode,
     {"run/adapter", "espalier export"}},
    {"EvaluateAnObjectiveOfARunOfOne",
     [](Setting& s) {
       s.train();
       s.on_run("evaluate", {"--objective=nonsense"});
     },
     kConfigCode,
     {"--objective", "nonsense"}},
    {"EvaluateAnObjectiveOfNoRun",
     [](Setting& s) {
       s.arguments = {"evaluate", "--model.path=" + s.model.string(), "--data.path=" + s.dataset.string(),
                      "--objective=a"};
     },
     kConfigCode,
     {"--objective", "--run"}},
    {"InspectFlagsBeforeThePath",
     [](Setting& s) {
       s.arguments = {"inspect", "--peft.method=lst", s.model.string()};
     },
     kConfigCode,
     {"PATH", "--peft.method=lst"}},
};

INSTANTIATE_TEST_SUITE_P(Use, BadInput, testing::ValuesIn(kUseCases), name_of);

TEST(BadLauncher, SeveralProcessesThatKnowNothingOfEachOtherAreRefused) {
  const TemporaryFolder folder;
  const Setting setting(folder.path());
  setenv("SLURM_STEP_NUM_TASKS", "4", 1);
  const auto result = run_program(setting.arguments);
  unsetenv("SLURM_STEP_NUM_TASKS");
  EXPECT_EQ(result.exit_code, kConfigCode) << result.output;
  EXPECT_THAT(result.output, testing::HasSubstr("srun --mpi=pmix"));
}

TEST(AdapterBesideARun, IsReadWithItsOwnOptions) {
  const TemporaryFolder folder;
  Setting setting(folder.path());
  const auto train = [&](const std::string& name, const std::string& alpha) {
    setting.replace("run.folder", (folder.path() / name).string());
    setting.replace("peft.lora.alpha", alpha);
    setting.train();
  };
  setting.add("--peft.method=lora");
  setting.add("--optimizer.learning_rate=0.1");
  train("run", "64");
  train("other", "2");
  const auto logits_of = [&](const std::vector<std::string>& flags) {
    setting.predicts([](Hdf5File& file) { write_ids(file, "input_ids", {2, 3}, 4); }, flags);
    const auto result = run_program(setting.arguments);
    EXPECT_EQ(result.exit_code, 0) << result.output;
    std::vector<float> logits(4);
    Hdf5File::open(folder.path() / "out.h5").read("logits", Hdf5Type::kFloat32, logits.data());
    return logits;
  };
  const std::string adapter = "--adapter=" + (folder.path() / "other/adapter").string();
  EXPECT_EQ(logits_of({adapter, "--run=" + (folder.path() / "run").string()}), logits_of({adapter}));
}

}  // namespace
}  // namespace espalier::test
