// SPDX-License-Identifier: Apache-2.0
// Wrong input of every kind, given to the program as a user would: the exit code is right, and the message names the
// file, key or tensor, what was expected and what was found.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <ostream>

#include "common/durable_file.h"
#include "common/hdf5_file.h"
#include "model/weights.h"
#include "program.h"
#include "temporary_folder.h"
#include "tiny_dataset.h"
#include "tiny_model.h"

namespace espalier::test {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr int kConfig = 2;
constexpr int kStorage = 5;

/// A good model, dataset and command line, for a case to spoil.
struct Setting {
  explicit Setting(const fs::path& folder)
      : root(folder),
        model(write_tiny_model({}, folder / "model")),
        dataset(write_tiny_dataset({}, folder / "data.h5")),
        arguments{"train",
                  "--model.path=" + model.string(),
                  "--data.path=" + dataset.string(),
                  "--run.folder=" + (folder / "run").string(),
                  "--train.max_steps=2",
                  "--parallel.threads=1",
                  "--data.global_batch_size=8"} {}
  void add(const std::string& flag) { arguments.push_back(flag); }
  void replace(const std::string& key, const std::string& value) {
    std::erase_if(arguments, [&](const std::string& word) { return word.starts_with("--" + key + "="); });
    add("--" + key + "=" + value);
  }
  void remove(const std::string& key) {
    std::erase_if(arguments, [&](const std::string& word) { return word.starts_with("--" + key + "="); });
  }
  void edit_config(const std::string& from, const std::string& to) const {
    auto text = read_file(model / "config.json");
    const auto at = text.find(from);
    if (at == std::string::npos) {
      throw std::runtime_error("config.json has no " + from);
    }
    write_file_durably(model / "config.json", text.replace(at, from.size(), to));
  }
  /// Trains the good setting, so that a run folder is there to spoil.
  void train() const {
    const auto result = run_program(arguments);
    if (result.exit_code != 0) {
      throw std::runtime_error(result.output);
    }
  }
  /// Takes the run's export, with `flags`, for the command line.
  void exports(const std::vector<std::string>& flags) {
    arguments = {"export", "--run=" + (root / "run").string(), "--output=" + (root / "out").string()};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
  }
  [[nodiscard]] std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(root / name) << text;
    return (root / name).string();
  }
  [[nodiscard]] std::string ini(const std::string& text) const { return "--config=" + write("bad.ini", text); }

  fs::path root, model, dataset;
  std::vector<std::string> arguments;
};

struct Case {
  const char* name;
  std::function<void(Setting&)> spoil;
  int exit_code;
  std::vector<std::string> said;
  friend std::ostream& operator<<(std::ostream& stream, const Case& self) { return stream << self.name; }
};

/// Rewrites the weights after `change`.
void change_weights(const Setting& setting, const std::function<void(std::map<std::string, at::Tensor>&)>& change) {
  const auto file = setting.model / "model.safetensors";
  std::map<std::string, at::Tensor> tensors;
  {
    const auto source = model::open_safetensors(file);
    for (const auto& name : source->names()) {
      tensors.emplace(name, source->get(name).clone());
    }
  }
  change(tensors);
  model::write_safetensors(file, {tensors.begin(), tensors.end()}, {});
}

/// Overwrites `bytes` at `offset`.
void damage_file(const fs::path& path, std::streamoff offset, const std::string& bytes) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(offset);
  file << bytes;
}

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

const Case kCases[] = {
    // options
    {"UnknownCommand", [](Setting& s) { s.arguments[0] = "trian"; }, kConfig, {"trian", "train"}},
    {"UnknownKey", [](Setting& s) { s.add("--train.epoch=3"); }, kConfig, {"train.epoch", "train.epochs"}},
    {"UnknownKeyInFile",
     [](Setting& s) { s.add(s.ini("[optimizer]\nlearning_rat = 1\n")); },
     kConfig,
     {"bad.ini:2", "learning_rat", "learning_rate"}},
    {"UnknownSection",
     [](Setting& s) { s.add(s.ini("[optimiser]\nlearning_rate = 1\n")); },
     kConfig,
     {"bad.ini", "optimiser"}},
    {"KeyTwiceInFile",
     [](Setting& s) { s.add(s.ini("[train]\nseed = 1\nseed = 2\n")); },
     kConfig,
     {"bad.ini:3", "seed"}},
    {"LineWithoutEquals", [](Setting& s) { s.add(s.ini("[train]\nseed 1\n")); }, kConfig, {"bad.ini:2"}},
    {"ConfigFileAbsent",
     [](Setting& s) { s.add("--config=" + (s.root / "none.ini").string()); },
     kConfig,
     {"none.ini"}},
    {"NotANumber",
     [](Setting& s) { s.add("--optimizer.learning_rate=fast"); },
     kConfig,
     {"optimizer.learning_rate", "fast"}},
    {"NotAWholeNumber", [](Setting& s) { s.add("--train.epochs=1.5"); }, kConfig, {"train.epochs", "1.5"}},
    {"BelowTheRange", [](Setting& s) { s.add("--train.epochs=0"); }, kConfig, {"train.epochs", "1", "0"}},
    {"NotAChoice",
     [](Setting& s) { s.add("--parallel.schedule=zigzag"); },
     kConfig,
     {"parallel.schedule", "1f1b", "zigzag"}},
    {"NotABoolean", [](Setting& s) { s.add("--data.shuffle=perhaps"); }, kConfig, {"data.shuffle", "perhaps"}},
    {"MissingModelPath", [](Setting& s) { s.remove("model.path"); }, kConfig, {"model.path"}},
    {"MissingRunFolder", [](Setting& s) { s.remove("run.folder"); }, kConfig, {"run.folder"}},
    {"MissingDataPath", [](Setting& s) { s.remove("data.path"); }, kConfig, {"data.path"}},
    {"MetricOfAnotherTask",
     [](Setting& s) { s.add("--train.best_metric=pearson"); },
     kConfig,
     {"train.best_metric", "pearson", "accuracy"}},
    {"UnknownMethod", [](Setting& s) { s.add("--peft.method=lsst"); }, kConfig, {"peft.method", "lsst", "lst"}},
    {"ReductionThatDoesNotDivide", [](Setting& s) { s.add("--peft.lst.reduction=7"); }, kConfig, {"reduction", "7"}},
    {"SideLayerThatIsNotThere",
     [](Setting& s) {
       s.add("--peft.lst.reduction=4");
       s.add("--peft.lst.layers=1,9");
     },
     kConfig,
     {"layers", "9"}},
    {"UnknownLoraTarget",
     [](Setting& s) {
       s.add("--peft.method=lora");
       s.add("--peft.lora.targets=attention.querry");
     },
     kConfig,
     {"attention.querry", "attention.query"}},
    {"FixedLengthBelowMaxLength",
     [](Setting& s) { s.add("--data.fixed_length=8"); },
     kConfig,
     {"data.fixed_length", "8"}},
    {"MicroBatchAboveGlobalBatch",
     [](Setting& s) { s.add("--data.micro_batch_size=9"); },
     kConfig,
     {"data.micro_batch_size", "9", "8"}},
    // layout
    {"StagesThatDoNotFitTheRanks", [](Setting& s) { s.add("--parallel.stages=2"); }, kConfig, {"parallel.stages", "1"}},
    {"ReplicasThatDoNotFitTheRanks", [](Setting& s) { s.add("--parallel.replicas=3"); }, kConfig, {"3", "1"}},
    {"NoSuchDevice", [](Setting& s) { s.add("--model.device=cuda"); }, kConfig, {"model.device", "cuda"}},
    // data
    {"DatasetAbsent", [](Setting& s) { s.replace("data.path", "none.h5"); }, kConfig, {"none.h5"}},
    {"DatasetIsNoHdf5",
     [](Setting& s) { s.replace("data.path", s.write("text.h5", "hello")); },
     kConfig,
     {"text.h5", "HDF5"}},
    {"DatasetOfAnotherVocabulary",
     [](Setting& s) { write_tiny_dataset({.vocab = 99}, s.dataset); },
     kConfig,
     {"data.h5", "99", "50"}},
    {"DatasetWithoutTrainSplit",
     [](Setting& s) {
       auto file = Hdf5File::create(s.dataset);
       file.flush_and_close();
     },
     kConfig,
     {"data.h5"}},
    {"RowsLongerThanTheModel",
     [](Setting& s) {
       write_tiny_dataset({.longest = 60}, s.dataset);
       s.add("--data.max_length=60");
     },
     kConfig,
     {"32"}},
    {"UnknownSplit",
     [](Setting& s) {
       s.train();
       s.arguments = {"evaluate", "--run=" + (s.root / "run").string(), "--split=dev"};
     },
     kConfig,
     {"dev", "validation"}},
    // model folder
    {"ModelFolderAbsent", [](Setting& s) { s.replace("model.path", (s.root / "none").string()); }, kConfig, {"none"}},
    {"ConfigJsonBroken", [](Setting& s) { s.edit_config("{", "{{"); }, kConfig, {"config.json"}},
    {"UnknownModelType",
     [](Setting& s) { s.edit_config("\"bert\"", "\"mamba\""); },
     kConfig,
     {"config.json", "model_type", "mamba", "bert"}},
    {"UnknownActivation",
     [](Setting& s) { s.edit_config("\"gelu\"", "\"gelo\""); },
     kConfig,
     {"hidden_act", "gelo", "gelu"}},
    {"HeadsThatDoNotDivide",
     [](Setting& s) { s.edit_config("\"num_attention_heads\": 3", "\"num_attention_heads\": 5"); },
     kConfig,
     {"num_attention_heads", "5"}},
    {"WeightsAbsent", [](Setting& s) { fs::remove(s.model / "model.safetensors"); }, kConfig, {"model.safetensors"}},
    {"WeightsTruncated",
     [](Setting& s) { fs::resize_file(s.model / "model.safetensors", 5000); },
     kConfig,
     {"model.safetensors"}},
    {"WeightsHeaderBroken",
     [](Setting& s) { damage_file(s.model / "model.safetensors", 8, "?"); },
     kConfig,
     {"model.safetensors"}},
    {"TensorMissing",
     [](Setting& s) { change_weights(s, [](auto& t) { t.erase(std::next(t.begin())); }); },
     kConfig,
     {"embedding.norm.weight", "missing", "expected"}},
    {"TensorOfAnotherShape",
     [](Setting& s) { change_weights(s, [](auto& t) {
                        t.begin()->second = at::zeros({2, 3});
                      }); },
     kConfig,
     {"[2, 3]"}},
    {"TensorUnknown",
     [](Setting& s) { change_weights(s, [](auto& t) { t.emplace("mystery.weight", at::zeros({2})); }); },
     kConfig,
     {"mystery.weight"}},
    // runs, checkpoints, adapters
    {"ResumeWithOtherOptions",
     [](Setting& s) {
       s.train();
       s.add("--optimizer.learning_rate=0.5");
     },
     kConfig,
     {"learning_rate", "0.5"}},
    {"ResumeOnOtherData",
     [](Setting& s) {
       s.train();
       write_tiny_dataset({.seed = 2}, s.dataset);
     },
     kConfig,
     {"dataset"}},
    {"ResumeNeverWithACheckpoint",
     [](Setting& s) {
       s.train();
       s.add("--checkpoint.resume=never");
     },
     kConfig,
     {"checkpoint.resume"}},
    {"ResumeMustWithoutACheckpoint",
     [](Setting& s) { s.add("--checkpoint.resume=must"); },
     kConfig,
     {"checkpoint.resume"}},
    {"OnlyADamagedCheckpoint",
     [](Setting& s) {
       s.train();
       damage_file(tensor_file_of(newest_checkpoint(s)), 3000, "damaged!");
     },
     kStorage,
     {"step_00000002"}},
    {"AdapterDamaged",
     [](Setting& s) {
       s.train();
       damage_file(s.root / "run/adapter/adapter.safetensors", 4000, "damaged!");
       s.arguments = {"evaluate", "--run=" + (s.root / "run").string()};
     },
     kStorage,
     {"adapter"}},
    {"AdapterOfAnotherBackbone",
     [](Setting& s) {
       s.train();
       change_weights(s, [](auto& t) { t.begin()->second += 1; });
       s.arguments = {"evaluate", "--run=" + (s.root / "run").string()};
     },
     kConfig,
     {"adapter", "digest"}},
    {"RunFolderAbsent",
     [](Setting& s) {
       s.arguments = {"evaluate", "--run=" + (s.root / "nowhere").string()};
     },
     kConfig,
     {"nowhere"}},
    {"ExportWithoutCheckpoint",
     [](Setting& s) {
       s.train();
       fs::remove_all(s.root / "run/checkpoints");
       s.exports({});
     },
     kConfig,
     {"checkpoint", "train first", "--run"}},
    {"ExportFromAFolderThatIsNoRun", [](Setting& s) { s.exports({}); }, kConfig, {"--run", "run/config.ini"}},
    {"ExportOfAStepThatIsNotThere",
     [](Setting& s) {
       s.train();
       s.exports({"--step=7"});
     },
     kConfig,
     {"--step", "(2)", "found 7"}},
    {"ExportOntoAChangedBackbone",
     [](Setting& s) {
       s.train();
       change_weights(s, [](auto& t) { t.begin()->second += 1; });
       s.exports({"--weights=last"});
     },
     kConfig,
     {"step_00000002", "digest", "--model.path"}},
    {"ExportWithAnotherDataset",
     [](Setting& s) {
       s.train();
       write_tiny_dataset({.seed = 2}, s.dataset);
       s.exports({"--weights=last"});
     },
     kConfig,
     {"step_00000002", "digest", "--data.path"}},
    {"ExportOfTheBestWhereNoneIsKept",
     [](Setting& s) {
       s.add("--train.restore_best=false");
       s.add("--train.evaluate_every_steps=1");
       s.train();
       s.exports({});
     },
     kConfig,
     {"best evaluation", "train.restore_best=false", "--weights=last"}},
    {"ExportTypeOfAnotherFormat",
     [](Setting& s) { s.exports({"--type=bf16"}); },
     kConfig,
     {"--type", "--format=merged"}},
    {"ExportShardsOfAnotherFormat",
     [](Setting& s) {
       s.exports({"--format=peft", "--shard_bytes=9000"});
     },
     kConfig,
     {"--shard_bytes", "--format=peft"}},
    {"InspectNothing",
     [](Setting& s) {
       s.arguments = {"inspect", (s.root / "nothing").string()};
     },
     kConfig,
     {"nothing"}},
    {"PredictWithoutOutput",
     [](Setting& s) {
       s.arguments = {"predict", "--model.path=" + s.model.string(), "--data.path=" + s.dataset.string()};
     },
     kConfig,
     {"--output"}},
    {"PredictUnknownArray",
     [](Setting& s) {
       auto file = Hdf5File::create(s.root / "in.h5");
       const std::vector<std::int64_t> ids(6, 4);
       file.write("input_ids", Hdf5Type::kInt64, {2, 3}, ids.data());
       file.write("pixel_values", Hdf5Type::kInt64, {2, 3}, ids.data());
       file.flush_and_close();
       s.arguments = {"predict", "--model.path=" + s.model.string(), "--inputs=" + (s.root / "in.h5").string(),
                      "--output=" + (s.root / "out.h5").string()};
     },
     kConfig,
     {"in.h5", "pixel_values"}},
};

class BadInput : public testing::TestWithParam<Case> {};

TEST_P(BadInput, IsRefusedByName) {
  const TemporaryFolder folder;
  Setting setting(folder.path());
  GetParam().spoil(setting);
  const auto result = run_program(setting.arguments);
  EXPECT_EQ(result.exit_code, GetParam().exit_code) << result.output;
  for (const auto& text : GetParam().said) {
    EXPECT_THAT(result.output, HasSubstr(text));
  }
}

INSTANTIATE_TEST_SUITE_P(Table, BadInput, testing::ValuesIn(kCases),
                         [](const auto& one) { return std::string(one.param.name); });

TEST(BadInputTable, HasAtLeastFortyCases) {
  EXPECT_GE(std::size(kCases), 40U);
}

}  // namespace
}  // namespace espalier::test
