// SPDX-License-Identifier: Apache-2.0
// Wrong options, data, models and checkpoints, given to `espalier train` as a user would.
#include <ATen/ATen.h>

#include <stdexcept>

#include "bad_input.h"
#include "tiny_dataset.h"

namespace espalier::test {
namespace {

namespace fs = std::filesystem;

fs::path newest_checkpoint(const Setting& setting) {
  return setting.root / "run/checkpoints/step_00000002";
}

fs::path tensor_file_of(const fs::path& checkpoint) {
  for (const auto& entry : fs::directory_iterator(checkpoint)) {
    if (entry.path().extension() == ".h5") {
      return entry.path();
    }
  }
  throw std::runtime_error("no tensor file");
}

const Case kTrainingCases[] = {
    // options
    {"UnknownCommand", [](Setting& s) { s.arguments[0] = "trian"; }, kConfigCode, {"trian", "train"}},
    {"UnknownKey", [](Setting& s) { s.add("--train.epoch=3"); }, kConfigCode, {"train.epoch", "train.epochs"}},
    {"UnknownKeyInFile",
     [](Setting& s) { s.add(s.ini("[optimizer]\nlearning_rat = 1\n")); },
     kConfigCode,
     {"bad.ini:2", "learning_rat", "learning_rate"}},
    {"UnknownSection",
     [](Setting& s) { s.add(s.ini("[optimiser]\nlearning_rate = 1\n")); },
     kConfigCode,
     {"bad.ini", "optimiser"}},
    {"KeyTwiceInFile",
     [](Setting& s) { s.add(s.ini("[train]\nseed = 1\nseed = 2\n")); },
     kConfigCode,
     {"bad.ini:3", "seed"}},
    {"LineWithoutEquals", [](Setting& s) { s.add(s.ini("[train]\nseed 1\n")); }, kConfigCode, {"bad.ini:2"}},
    {"ConfigFileAbsent",
     [](Setting& s) { s.add("--config=" + (s.root / "none.ini").string()); },
     kConfigCode,
     {"none.ini"}},
    {"NotANumber",
     [](Setting& s) { s.add("--optimizer.learning_rate=fast"); },
     kConfigCode,
     {"optimizer.learning_rate", "fast"}},
    {"NotAWholeNumber", [](Setting& s) { s.add("--train.epochs=1.5"); }, kConfigCode, {"train.epochs", "1.5"}},
    {"BelowTheRange", [](Setting& s) { s.add("--train.epochs=0"); }, kConfigCode, {"train.epochs", "1", "0"}},
    {"NotAChoice",
     [](Setting& s) { s.add("--parallel.schedule=zigzag"); },
     kConfigCode,
     {"parallel.schedule", "1f1b", "zigzag"}},
    {"NotABoolean", [](Setting& s) { s.add("--data.shuffle=perhaps"); }, kConfigCode, {"data.shuffle", "perhaps"}},
    {"MissingModelPath", [](Setting& s) { s.remove("model.path"); }, kConfigCode, {"model.path"}},
    {"MissingRunFolder", [](Setting& s) { s.remove("run.folder"); }, kConfigCode, {"run.folder"}},
    {"MissingDataPath", [](Setting& s) { s.remove("data.path"); }, kConfigCode, {"data.path"}},
    {"MetricOfAnotherTask",
     [](Setting& s) { s.add("--train.best_metric=pearson"); },
     kConfigCode,
     {"train.best_metric", "pearson", "accuracy"}},
    {"UnknownMethod", [](Setting& s) { s.add("--peft.method=lsst"); }, kConfigCode, {"peft.method", "lsst", "lst"}},
    {"ReductionThatDoesNotDivide",
     [](Setting& s) { s.add("--peft.lst.reduction=7"); },
     kConfigCode,
     {"reduction", "7"}},
    {"SideLayerThatIsNotThere",
     [](Setting& s) {
       s.add("--peft.lst.reduction=4");
       s.add("--peft.lst.layers=1,9");
     },
     kConfigCode,
     {"layers", "9"}},
    {"UnknownLoraTarget",
     [](Setting& s) {
       s.add("--peft.method=lora");
       s.add("--peft.lora.targets=attention.querry");
     },
     kConfigCode,
     {"attention.querry", "attention.query"}},
    {"FixedLengthBelowMaxLength",
     [](Setting& s) { s.add("--data.fixed_length=8"); },
     kConfigCode,
     {"data.fixed_length", "8"}},
    {"MicroBatchAboveGlobalBatch",
     [](Setting& s) { s.add("--data.micro_batch_size=9"); },
     kConfigCode,
     {"data.micro_batch_size", "9", "8"}},
    // layout
    {"StagesThatDoNotFitTheRanks",
     [](Setting& s) { s.add("--parallel.stages=2"); },
     kConfigCode,
     {"parallel.stages", "1"}},
    {"ReplicasThatDoNotFitTheRanks", [](Setting& s) { s.add("--parallel.replicas=3"); }, kConfigCode, {"3", "1"}},
    {"NoSuchDevice", [](Setting& s) { s.add("--model.device=cuda"); }, kConfigCode, {"model.device", "cuda"}},
    // data
    {"DatasetAbsent", [](Setting& s) { s.replace("data.path", "none.h5"); }, kConfigCode, {"none.h5"}},
    {"DatasetIsNoHdf5",
     [](Setting& s) { s.replace("data.path", s.write("text.h5", "hello")); },
     kConfigCode,
     {"text.h5", "HDF5"}},
    {"DatasetOfAnotherVocabulary",
     [](Setting& s) { write_tiny_dataset({.vocab = 99}, s.dataset); },
     kConfigCode,
     {"data.h5", "99", "50"}},
    {"DatasetWithoutTrainSplit",
     [](Setting& s) {
       auto file = Hdf5File::create(s.dataset);
       file.flush_and_close();
     },
     kConfigCode,
     {"data.h5"}},
    {"RowsLongerThanTheModel",
     [](Setting& s) {
       write_tiny_dataset({.longest = 60}, s.dataset);
       s.add("--data.max_length=60");
     },
     kConfigCode,
     {"32"}},
    // model folder
    {"ModelFolderAbsent",
     [](Setting& s) { s.replace("model.path", (s.root / "none").string()); },
     kConfigCode,
     {"none"}},
    {"ConfigJsonBroken", [](Setting& s) { s.edit_config("{", "{{"); }, kConfigCode, {"config.json"}},
    {"UnknownModelType",
     [](Setting& s) { s.edit_config("\"bert\"", "\"mamba\""); },
     kConfigCode,
     {"config.json", "model_type", "mamba", "bert"}},
    {"UnknownActivation",
     [](Setting& s) { s.edit_config("\"gelu\"", "\"gelo\""); },
     kConfigCode,
     {"hidden_act", "gelo", "gelu"}},
    {"HeadsThatDoNotDivide",
     [](Setting& s) { s.edit_config("\"num_attention_heads\": 3", "\"num_attention_heads\": 5"); },
     kConfigCode,
     {"num_attention_heads", "5"}},
    {"WeightsAbsent",
     [](Setting& s) { fs::remove(s.model / "model.safetensors"); },
     kConfigCode,
     {"model.safetensors"}},
    {"WeightsTruncated",
     [](Setting& s) { fs::resize_file(s.model / "model.safetensors", 5000); },
     kConfigCode,
     {"model.safetensors"}},
    {"WeightsHeaderBroken",
     [](Setting& s) { damage_file(s.model / "model.safetensors", 8, "?"); },
     kConfigCode,
     {"model.safetensors"}},
    {"TensorMissing",
     [](Setting& s) { change_weights(s, [](auto& t) { t.erase(std::next(t.begin())); }); },
     kConfigCode,
     {"embedding.norm.weight", "missing", "expected"}},
    {"TensorOfAnotherShape",
     [](Setting& s) { change_weights(s, [](auto& t) {
                        t.begin()->second = at::zeros({2, 3});
                      }); },
     kConfigCode,
     {"[2, 3]"}},
    {"TensorUnknown",
     [](Setting& s) { change_weights(s, [](auto& t) { t.emplace("mystery.weight", at::zeros({2})); }); },
     kConfigCode,
     {"mystery.weight"}},
    // runs, checkpoints, adapters
    {"ResumeWithOtherOptions",
     [](Setting& s) {
       s.train();
       s.add("--optimizer.learning_rate=0.5");
     },
     kConfigCode,
     {"learning_rate", "0.5"}},
    {"ResumeOnOtherData",
     [](Setting& s) {
       s.train();
       write_tiny_dataset({.seed = 2}, s.dataset);
     },
     kConfigCode,
     {"dataset"}},
    {"ResumeNeverWithACheckpoint",
     [](Setting& s) {
       s.train();
       s.add("--checkpoint.resume=never");
     },
     kConfigCode,
     {"checkpoint.resume"}},
    {"ResumeMustWithoutACheckpoint",
     [](Setting& s) { s.add("--checkpoint.resume=must"); },
     kConfigCode,
     {"checkpoint.resume"}},
    {"OnlyADamagedCheckpoint",
     [](Setting& s) {
       s.train();
       damage_file(tensor_file_of(newest_checkpoint(s)), 3000, "damaged!");
     },
     kStorageCode,
     {"step_00000002"}},
    {"SectionThatAFlagWouldOverride",
     [](Setting& s) {
       s.add(s.ini("[sweep]\noptimizer.learning_rate = 1e-3 | 3e-3\n"));
       s.add("--optimizer.learning_rate=5e-4");
     },
     kConfigCode,
     {"--optimizer.learning_rate", "bad.ini:2", "--sweep.optimizer.learning_rate"}},
    {"PrintConfigOfAFileThatIsAbsent",
     [](Setting& s) {
       s.arguments = {"train", "--print-config", "--config=" + (s.root / "none.ini").string()};
     },
     kConfigCode,
     {"none.ini"}},
    {"PrintConfigOfASweepOfWords",
     [](Setting& s) {
       s.arguments = {"train", "--print-config", "--sweep.peft.lora.rank=x | y"};
     },
     kConfigCode,
     {"peft.lora.rank", "x"}},
};

INSTANTIATE_TEST_SUITE_P(Training, BadInput, testing::ValuesIn(kTrainingCases), name_of);

TEST(BadInputTable, HasAtLeastFortyTrainingCases) {
  EXPECT_GE(std::size(kTrainingCases), 40U);
}

}  // namespace
}  // namespace espalier::test
