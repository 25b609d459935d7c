// SPDX-License-Identifier: Apache-2.0
#include "bad_input.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <fstream>
#include <stdexcept>

#include "common/durable_file.h"
#include "model/weights.h"
#include "program.h"
#include "temporary_folder.h"
#include "tiny_dataset.h"
#include "tiny_model.h"

namespace espalier::test {

namespace fs = std::filesystem;

Setting::Setting(const fs::path& folder)
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

void Setting::replace(const std::string& key, const std::string& value) {
  remove(key);
  add("--" + key + "=" + value);
}

void Setting::remove(const std::string& key) {
  std::erase_if(arguments, [&](const std::string& word) { return word.starts_with("--" + key + "="); });
}

void Setting::edit_config(const std::string& from, const std::string& to) const {
  auto text = read_file(model / "config.json");
  const auto at = text.find(from);
  if (at == std::string::npos) {
    throw std::runtime_error("config.json has no " + from);
  }
  write_file_durably(model / "config.json", text.replace(at, from.size(), to));
}

void Setting::train() const {
  const auto result = run_program(arguments);
  if (result.exit_code != 0) {
    throw std::runtime_error(result.output);
  }
}

void Setting::on_run(const std::string& command, const std::vector<std::string>& flags) {
  arguments = {command, "--run=" + (root / "run").string()};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
}

void Setting::exports(const std::vector<std::string>& flags) {
  on_run("export", flags);
  add("--output=" + (root / "out").string());
}

void Setting::predicts(const std::function<void(Hdf5File& file)>& fill, const std::vector<std::string>& flags) {
  auto file = Hdf5File::create(root / "in.h5");
  fill(file);
  file.flush_and_close();
  arguments = {"predict", "--model.path=" + model.string(), "--inputs=" + (root / "in.h5").string(),
               "--output=" + (root / "out.h5").string(), "--parallel.threads=1"};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
}

std::string Setting::write(const std::string& name, const std::string& text) const {
  std::ofstream(root / name) << text;
  return (root / name).string();
}

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

void damage_file(const fs::path& path, std::streamoff offset, const std::string& bytes) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(offset);
  file << bytes;
}

TEST_P(BadInput, IsRefusedByName) {
  const TemporaryFolder folder;
  Setting setting(folder.path());
  GetParam().spoil(setting);
  const auto result = run_program(setting.arguments);
  EXPECT_EQ(result.exit_code, GetParam().exit_code) << result.output;
  for (const auto& text : GetParam().said) {
    EXPECT_THAT(result.output, testing::HasSubstr(text));
  }
}

}  // namespace espalier::test
