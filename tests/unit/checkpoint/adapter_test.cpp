// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/adapter.h"

#include "checkpoint/sealed_json.h"
#include "common/error.h"
#include "fixture.h"

namespace fs = std::filesystem;

namespace espalier::checkpoint {
namespace {

Adapter some_adapter(double version) {
  Adapter adapter;
  adapter.description = {{"method", "lst"},
                         {"options", "[peft]\nmethod = lst\n"},
                         {"base_model_digest", "0123456789abcdef0123456789abcdef"},
                         {"step", 40},
                         {"note", version}};
  adapter.tensors["head.weight"] = counted({2, 3}, version).to(at::kFloat);
  adapter.tensors["side.0.gate"] = at::full({}, version, at::kFloat);
  adapter.tensors["side.0.down"] = counted({3, 2}, version).to(at::kBFloat16).t();
  return adapter;
}

void expect_equal(const Adapter& found, const Adapter& expected) {
  ASSERT_EQ(found.tensors.size(), expected.tensors.size());
  for (const auto& [name, tensor] : expected.tensors) EXPECT_TRUE(equal_bits(found.tensors.at(name), tensor)) << name;
  for (const auto& [key, value] : expected.description.items()) EXPECT_EQ(found.description.at(key), value) << key;
}

TEST(Adapter, ComesBackAsItWasWrittenAndItsTensorsCanBeTrained) {
  const TemporaryFolder root;
  const fs::path folder = root.path() / "deep" / "adapter";
  write_adapter(folder, some_adapter(1));
  Adapter found = read_adapter(folder);
  expect_equal(found, some_adapter(1));
  EXPECT_EQ(found.description.at("format_version"), 1);
  EXPECT_EQ(found.description.at("tensors").at("entries").at("side.0.down"),
            nlohmann::json({{"shape", {2, 3}}, {"dtype", "bfloat16"}}));
  found.tensors.at("head.weight").add_(1);  // not a view of the read-only map
  EXPECT_FALSE(fs::exists(root.path() / "deep" / "adapter.tmp"));
}

TEST(Adapter, ReplacesAnAdapterAlsoThroughAPathWithAFinalSlash) {
  const TemporaryFolder root;
  write_adapter(root.path() / "a", some_adapter(1));
  write_adapter(root.path() / "a/", some_adapter(2));
  expect_equal(read_adapter(root.path() / "a"), some_adapter(2));
  EXPECT_EQ(std::distance(fs::directory_iterator(root.path()), fs::directory_iterator()), 1);
}

TEST(Adapter, RefusesToReplaceAFolderThatHoldsAnythingElse) {
  const TemporaryFolder root;
  fs::create_directories(root.path() / "a");
  write_file_durably(root.path() / "a" / "thesis.tex", "precious");
  expect_error<ConfigError>([&] { write_adapter(root.path() / "a", some_adapter(1)); },
                            {"thesis.tex", "another folder"});
  EXPECT_EQ(read_file(root.path() / "a" / "thesis.tex"), "precious");
}

TEST(Adapter, NoticesAFlippedBitInTensorsAndDescriptionBeforeUsingThem) {
  const TemporaryFolder root;
  const fs::path folder = root.path() / "a";
  write_adapter(folder, some_adapter(1));
  flip_bit(folder / "adapter.safetensors", fs::file_size(folder / "adapter.safetensors") - 1);
  expect_error<IoError>([&] { read_adapter(folder); }, {"adapter.safetensors", "damaged"});
  write_adapter(folder, some_adapter(1));
  flip_bit(folder / "adapter.json", offset_of(folder / "adapter.json", "method = lst") + 10);
  expect_error<IoError>([&] { read_adapter(folder); }, {"adapter.json"});
}

TEST(Adapter, NoticesATruncatedOrMissingTensorFile) {
  const TemporaryFolder root;
  const fs::path folder = root.path() / "a";
  write_adapter(folder, some_adapter(1));
  fs::resize_file(folder / "adapter.safetensors", 9);
  expect_error<IoError>([&] { read_adapter(folder); }, {"adapter.safetensors", "found 9"});
  fs::remove(folder / "adapter.safetensors");
  expect_error<IoError>([&] { read_adapter(folder); }, {"adapter.safetensors"});
}

TEST(Adapter, RefusesAFolderThatIsNoAdapterAndAnotherFormatVersion) {
  const TemporaryFolder root;
  const fs::path folder = root.path() / "a";
  expect_error<ConfigError>([&] { read_adapter(folder); }, {folder.string(), "adapter.json"});
  write_adapter(folder, some_adapter(1));
  nlohmann::json description = read_adapter(folder).description;
  description["format_version"] = 2;
  write_file_durably(folder / "adapter.json", seal(description));
  expect_error<ConfigError>([&] { read_adapter(folder); }, {"version 1", "version 2"});
}

}  // namespace
}  // namespace espalier::checkpoint
